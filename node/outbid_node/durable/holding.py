"""What a keeper knows of one owner: which copies it has, and whose the jobs are. No I/O.

Law: a copy on the keeper's disk is either the owner's (`keeping`, `released`) or the keeper's (`adopted`), never both;
the state is written before anything is done in its name. While `keeping`, the keeper may adopt at any moment, so the
owner records no end before that end has become the copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.keeping import Compare, Compared, Mirror, Named

State = Literal["keeping", "adopted", "released"]

MOVED = b""
"""In place of a copy: the job was taken over."""

FROZEN_S = 5.0
"""After a pause this long between two looks, this node was frozen itself, and knows nothing about the others."""


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest() if data else MOVED


def named(id: JobId, data: bytes) -> Named:
    return Named(id, digest(data))


class Write(NamedTuple):
    """One change on the keeper's disk: of a copy, or (without an id) of the state. Without data the key goes."""

    id: JobId | None
    data: bytes | None


class Holding:
    """Ask it what to write, write that, then `apply` it and answer. One request of the owner at a time."""

    def __init__(self, owner: NodeId) -> None:
        self.owner = owner
        self.state: State = "keeping"
        self.copies: dict[JobId, bytes] = {}
        """Their digests."""
        self.session = ""
        self._seq = 0
        self._named: set[JobId] | None = None
        """Those the owner named so far, while it compares."""

    def load(self, write: Write) -> None:
        """What was found on disk."""
        self.apply([write])

    def apply(self, writes: Iterable[Write]) -> None:
        """Those are on disk."""
        for id, data in writes:
            if id is None:
                self.state = _state(data)
            elif data is None:
                self.copies.pop(id, None)
            else:
                self.copies[id] = digest(data)

    @property
    def is_adoptable(self) -> bool:
        return self.state == "keeping" and bool(self.copies)

    @property
    def is_moving(self) -> bool:
        """Taken over, but not all jobs are this node's yet."""
        return self.state == "adopted" and any(self.copies.values())

    # -- the owner compares ---------------------------------------------------------------------------------------

    def compare(self, asked: Compare) -> Compared:
        if asked.session and not self._follows(asked):
            return Compared(status="again")
        moved = [job.id for job in asked.jobs if self._is_moved(job.id)]
        if not asked.session:
            return Compared(moved=tuple(moved))
        assert self._named is not None
        self._named |= {job.id for job in asked.jobs}
        here = [job for job in asked.jobs if job.id in self.copies and not self._is_moved(job.id)]
        return Compared(
            lacking=tuple(job.id for job in asked.jobs if job.id not in self.copies),
            stale=tuple(job.id for job in here if self.copies[job.id] != job.digest),
            moved=tuple(moved),
        )

    def _follows(self, asked: Compare) -> bool:
        if asked.seq == 0:
            self.session, self._seq, self._named = asked.session, 0, set()
            return True
        if asked.session != self.session or self._named is None or asked.seq - self._seq not in (0, 1):
            return False
        self._seq = asked.seq
        return True

    def _is_moved(self, id: JobId) -> bool:
        return id in self.copies and (self.state == "adopted" or self.copies[id] == MOVED)

    def surplus(self) -> Iterator[Write]:
        """At the last Compare: what is to go, the state being the last of it."""
        wanted, moved = self._named or set(), self.state == "adopted"
        gone = [id for id, found in self.copies.items() if moved or found == MOVED or id not in wanted]
        yield from (Write(id, None) for id in gone)
        yield Write(None, b"keeping")

    def begin(self) -> None:
        """That is done: the session is on."""
        self._named = None

    # -- the owner's changes --------------------------------------------------------------------------------------

    def changes(self, asked: Mirror) -> list[Write] | None:
        """None: not in this session, or not now."""
        on = asked.session == self.session and self.session != "" and self._named is None and self.state == "keeping"
        if not on or asked.seq - self._seq not in (0, 1):
            return None
        self._seq = asked.seq
        puts = [Write(copy.id, copy.data) for copy in asked.copies]
        return [*puts, *(Write(id, None) for id in asked.forget if id in self.copies)]

    def end_session(self) -> None:
        """Whatever the owner sends next, it has to compare first."""
        self.session, self._named = "", None


class Absences:
    """Since when owners are away, on this node's monotonic clock."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._since: dict[NodeId, float] = {}
        self._looked = 0.0

    def look(self, now: float, owners: Iterable[NodeId], is_there: Callable[[NodeId], bool]) -> list[NodeId]:
        """Those among `owners` that have been away long enough. Call it about every second."""
        if now - self._looked > FROZEN_S:
            self._since.clear()
        self._looked = now
        away = [owner for owner in owners if not is_there(owner)]
        self._since = {owner: self._since.get(owner, now) for owner in away}
        return [owner for owner in away if now - self._since[owner] >= self._after_s]


def _state(data: bytes | None) -> State:
    match data:
        case b"adopted":
            return "adopted"
        case b"released":
            return "released"
    return "keeping"
