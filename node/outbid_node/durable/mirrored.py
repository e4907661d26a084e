"""What an owner knows about the copies of its jobs at its keeper. No I/O.

Law: a job of which the keeper may have a copy is `fenced`: its end is the keeper's to confirm. It is fenced from the
moment its copy is sent, and, after a restart, until the keeper says that it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.keeping import (
    COMPARE_AT_ONCE,
    MIRROR_AT_ONCE,
    MIRROR_BYTES,
    Compare,
    Compared,
    Copy,
    Mirror,
    Named,
)
from outbid_node.durable.holding import named

DataOf = Callable[[JobId], bytes | None]
"""The encoded record of a job that has not ended, as it stands now."""


class MirroredJobs:
    def __init__(self, me: NodeId) -> None:
        self.me = me
        self.fenced: set[JobId] = set()
        self.ends: dict[JobId, bytes] = {}
        """Fenced jobs whose end is decided but not on this node's disk: their record with that end."""
        self.confirmed: set[JobId] = set()
        """Those among them whose end is the keeper's copy."""
        self.session = ""
        self.is_on = False
        """Whether the keeper has been compared with in this session."""
        self._seq = 0
        self._closing: set[JobId] = set()
        """Jobs without a copy whose end is being recorded: none may be sent any more."""
        self._fresh: set[JobId] = set()
        self._due: set[JobId] = set()
        self._forget: set[JobId] = set()
        self._inherited: set[JobId] = set()
        """Jobs the keeper took over with the end that this node is recording."""

    # -- what happens to jobs -------------------------------------------------------------------------------------

    def may_end(self, id: JobId, record: Callable[[], bytes]) -> bool:
        """Whether its end may be recorded now; else once `id` is among those that `took` or `compared` return."""
        if id not in self.fenced:
            self._closing.add(id)
            self._fresh.discard(id)
            self._due.discard(id)
            return True
        self.ends[id] = record()
        return False

    def changed(self, id: JobId) -> None:
        """Its record was written."""
        if self.session and id not in self.ends and id not in self._closing:
            self._fresh.add(id)

    def gone(self, id: JobId, *, moved: bool = False) -> None:
        """Its end is on this node's disk; or that it is another node's."""
        for ids in (self._closing, self._fresh, self._due, self.confirmed, self._inherited):
            ids.discard(id)
        self.ends.pop(id, None)
        if id in self.fenced:
            self.fenced.discard(id)
            if not moved:
                self._forget.add(id)

    def ripen(self) -> None:
        """Call it now and then: what changed since the call before is sent from the next call on, so that a job that
        is over by then never is.
        """
        self._due |= self._fresh
        self._fresh = set()

    def look(self, live: Iterable[JobId]) -> None:
        """Call it now and then: jobs that were being accepted while the keeper was compared with were not named."""
        if self.is_on:
            self._due.update(id for id in live if id not in self.fenced and id not in self._closing)

    def release(self) -> list[JobId]:
        """The keeper will not take any over: nothing is fenced. Returns the jobs that may end now."""
        free = [id for id in self.ends if id not in self.confirmed]
        self._closing |= self.ends.keys()
        for ids in (self.fenced, self.confirmed, self._forget, self._due, self._fresh):
            ids.clear()
        self.ends = {}
        self.lose()
        return free

    # -- comparing ------------------------------------------------------------------------------------------------

    def lose(self) -> None:
        """Where the keeper is, is not known any more."""
        self.session, self.is_on = "", False

    def open(self, session: str, live: Iterable[JobId], data_of: DataOf) -> Iterator[Compare]:
        """What to ask, one after the other; hand each answer to `compared` before the next. The last is `last`."""
        self.session, self.is_on, self._seq = session, False, 0
        self._fresh, self._due, self._forget, self._inherited = set(), set(), set(), set()
        names = list(dict.fromkeys((*live, *self.ends)))
        for start in range(0, len(names), COMPARE_AT_ONCE):
            some = [id for id in names[start : start + COMPARE_AT_ONCE] if id not in self._closing]
            part = ((id, self.ends.get(id) or data_of(id)) for id in some)
            jobs = tuple(named(id, data) for id, data in part if data is not None)
            self.fenced.update(job.id for job in jobs)
            yield Compare(owner=self.me, session=session, seq=self._seq, jobs=jobs)
            self._seq += 1

    @property
    def may_close(self) -> bool:
        """Whether `last` may be asked, for all this knows: not before ends that the keeper has too are on disk."""
        return not self._inherited

    def last(self) -> Compare:
        """To be asked when `open` is through and what was moved is given up on disk: the keeper then forgets that it
        took these jobs over.
        """
        return Compare(owner=self.me, session=self.session, seq=self._seq, last=True)

    def compared(self, asked: Compare, reply: Compared) -> tuple[list[JobId], list[JobId]]:
        """Returns the jobs that may end now, and those that are the keeper's."""
        lacking, stale, moved = set(reply.lacking), set(reply.stale), set(reply.moved)
        here = [job.id for job in asked.jobs if job.id in self.fenced and job.id not in moved]
        self.fenced -= lacking
        self._due |= {id for id in here if (id in lacking or id in stale) and id not in self.ends}
        self.confirmed -= stale
        ends = [job.id for job in asked.jobs if self._is_confirmed(job, lacking, stale | moved)]
        self.confirmed.update(ends)
        self._closing.update(id for id in ends if id in lacking)
        self._inherited |= moved & self.confirmed
        return ends, list(moved - self.confirmed)

    def _is_confirmed(self, job: Named, lacking: set[JobId], others: set[JobId]) -> bool:
        """The keeper has this very end, or nothing that it could take over."""
        if job.id in others or job.id in self.confirmed or job.id not in self.ends:
            return False
        return job.id in lacking or job == named(job.id, self.ends[job.id])

    # -- sending --------------------------------------------------------------------------------------------------

    def batch(self, data_of: DataOf, *, more: bool, beat: bool = False) -> Mirror | None:
        """The next to send, None if there is nothing, unless it is time for a `beat`. `more`: copies of further jobs
        too, not only what the keeper has to know of those it has.
        """
        copies = list(self._some_copies(data_of, more))
        forget = list(self._forget)[:MIRROR_AT_ONCE]
        if not copies and not forget and not beat:
            return None
        ids = {copy.id for copy in copies}
        self.fenced |= ids
        self._due -= ids
        self._seq += 1
        return Mirror(owner=self.me, session=self.session, seq=self._seq, copies=tuple(copies), forget=tuple(forget))

    def _some_copies(self, data_of: DataOf, more: bool) -> Iterator[Copy]:
        size = 0
        for number, copy in enumerate(self._copies(data_of, more)):
            size += len(copy.data)
            if number and (number >= MIRROR_AT_ONCE or size > MIRROR_BYTES):
                return
            yield copy

    def _copies(self, data_of: DataOf, more: bool) -> Iterator[Copy]:
        for id, data in self.ends.items():
            if id not in self.confirmed:
                yield Copy(id, data)
        for id in list(self._due):
            if not (more or id in self.fenced):
                continue
            if id in self.ends or id in self._closing:
                self._due.discard(id)
            elif (live := data_of(id)) is not None:  # None: accepted this moment
                yield Copy(id, live)

    def took(self, sent: Mirror) -> list[JobId]:
        """The keeper has it on disk. Returns the jobs that may end now."""
        self._forget.difference_update(sent.forget)
        allowed = []
        for copy in sent.copies:
            if self.ends.get(copy.id) == copy.data and copy.id not in self.confirmed:
                self.confirmed.add(copy.id)
                allowed.append(copy.id)
        return allowed
