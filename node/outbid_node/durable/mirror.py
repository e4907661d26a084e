"""The owner's side of its keeper: copies of this node's durable jobs on one other node that is always on.

The keeper is chosen once and remembered on disk; another one is chosen only when none of this node's jobs is fenced by
the old one, so a job has one keeper at most.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from outbid_contracts import subjects
from outbid_contracts.codec import encode
from outbid_contracts.durable import DurableJob
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.keeping import COMPARE_AT_ONCE, Compare, Compared, Mirrored, Named, Noted, Released
from outbid_node import pace
from outbid_node.client import Bus
from outbid_node.durable.book import Book, Moved
from outbid_node.durable.chosen import Chosen, ChosenFile, is_fit, rendezvous
from outbid_node.durable.entry import Change
from outbid_node.durable.live import data, live
from outbid_node.durable.mirrored import MirroredJobs
from outbid_node.durable.recovery import FEW
from outbid_node.registry import Registry

log = logging.getLogger(__name__)

RIPE_S = 0.25
"""Changes are sent after one to two times this; a job that is over sooner never is."""

ANSWER_S = 10.0
"""The keeper's disk may be an SD card."""

LAST_S = 60.0
"""How long it may take to drop a hundred thousand copies."""

BEAT_S = 2.0
"""How often an owner without news tells its keeper so: a keeper that took the jobs over says that then."""

LOOK_S = 15.0
PAUSE_S = 0.5
RETURN_S = 5.0
"""How long a restarted owner waits for its keeper's word before it takes its jobs on again."""

HOLD_S = 10.0
"""With the keeper away for so long, jobs it has copies of are not started any more: it may be doing them itself."""


class Mirroring:
    def __init__(self, *, me: NodeId, boot: str, bus: Bus, registry: Registry, book: Book, state: Path) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self.book = book
        self.mirrored = MirroredJobs(me)
        self._data = partial(data, book)
        self._sessions = (f"{boot}-{number}" for number in itertools.count(1))
        self._file = ChosenFile(state / "keeper.json")
        self._chosen = self._file.read()
        self._allowed: dict[JobId, asyncio.Future[None]] = {}
        self._dropped: set[asyncio.Future[None]] = set()
        self._wake = asyncio.Event()
        self._rests = False
        self._said = self._looked = 0.0
        self._away_since: float | None = time.monotonic()
        book.journal.on_commit.append(self._committed)
        book.not_ours, book.may_end, book.holds = self.not_ours, self.may_end, self.holds

    # -- what the book asks ---------------------------------------------------------------------------------------

    async def may_end(self, record: DurableJob) -> None:
        """Returns when this end may be recorded here; raises Moved if the keeper took the job over."""
        id = record.job.id
        if self.mirrored.may_end(id, lambda: encode(record)):
            return
        allowed = self._allowed[id] = asyncio.get_running_loop().create_future()
        self._wake.set()
        await allowed

    def holds(self, id: JobId) -> str:
        if not self._is_away() or id not in self.mirrored.fenced:
            return ""
        return f"waits for {self._name}, which has a copy of it and may have taken it over"

    async def not_ours(self, records: Sequence[DurableJob]) -> Mapping[JobId, NodeId]:
        """Those of a restarted owner's jobs that its keeper took over, with the keeper. Where it does not answer,
        nothing is certain: the jobs are fenced until it does.
        """
        if self._chosen is None:
            return {}
        known = self._chosen.fenced
        ids = [record.job.id for record in records if known is None or record.job.id in known]
        self.mirrored.fenced |= set(ids)
        until = time.monotonic() + RETURN_S
        while ids and time.monotonic() < until:
            if self._chosen.keeper in self.registry:
                with suppress(OutbidError, TimeoutError):
                    return dict.fromkeys(await self._ask_moved(ids), self._chosen.keeper)
            await asyncio.sleep(0.05)
        if ids:
            self._away_since = time.monotonic() - HOLD_S
            log.warning("keeper %s does not answer", self._name, extra={"action": "keeper_silent"})
        return {}

    async def _ask_moved(self, ids: list[JobId]) -> list[JobId]:
        moved: list[JobId] = []
        for start in range(0, len(ids), COMPARE_AT_ONCE):
            some = tuple(Named(id, b"") for id in ids[start : start + COMPARE_AT_ONCE])
            reply = await self._compare(Compare(owner=self.me, jobs=some))
            moved += reply.moved
        return moved

    def _committed(self, changes: Sequence[Change]) -> None:
        for id, record, ended in changes:
            if ended or record is None:
                self.mirrored.gone(id, moved=not ended)
            else:
                self.mirrored.changed(id)
        if self._rests:
            self._wake.set()

    # -- what people are told -------------------------------------------------------------------------------------

    @property
    def trouble(self) -> str:
        """What is wrong, for people; empty if nothing is."""
        count = len(self.book.held) + len(self._allowed)
        if not self._is_away() or not count:
            return ""
        jobs = "1 durable job waits for its" if count == 1 else f"{count} durable jobs wait for their"
        return f"{jobs} keeper {self._name}, which is away and may have taken over what it has copies of"

    @property
    def _name(self) -> str:
        return self._chosen.name if self._chosen else "?"

    def _is_away(self) -> bool:
        return self._away_since is not None and time.monotonic() - self._away_since >= HOLD_S

    # -- life -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        await self.book.ready.wait()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._step()
            except (OutbidError, TimeoutError, OSError) as error:
                self._lose(str(error) or "no answer")
                await asyncio.sleep(PAUSE_S)

    def _pause_s(self) -> float:
        """While there is no durable job here once a second is enough; the first one ends that."""
        book = self.book
        self._rests = not (book.parked or book.ending or book.held or book.owner.running or self._allowed)
        return pace.left_s() if self._rests else RIPE_S

    async def _step(self) -> None:
        keeper = await self._choose()
        if keeper is None or keeper not in self.registry:
            self._lose("it is away")
            await self._note_fenced()
            return
        fit = self._is_fit(keeper)
        if not self.mirrored.is_on:
            if not (fit or self.mirrored.fenced):
                return
            await self._remember(Chosen(keeper, self._name))
            await self._open(keeper)
        self.mirrored.ripen()
        if time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            self.mirrored.look(live(self.book))
        await self._send(keeper, more=fit)

    def _lose(self, why: str) -> None:
        if self._chosen is not None and self._away_since is None:
            log.info("no word from keeper %s: %s", self._name, why, extra={"action": "keeper_lost"})
        self._away_since = self._away_since or time.monotonic()
        self.mirrored.lose()

    async def _note_fenced(self) -> None:
        """With the keeper away there will be no more of them: what is submitted now is not fenced after a restart."""
        if self._chosen is not None and self._chosen.fenced is None and self._is_away():
            await self._remember(Chosen(self._chosen.keeper, self._name, tuple(self.mirrored.fenced)))

    # -- choosing -------------------------------------------------------------------------------------------------

    async def _choose(self) -> NodeId | None:
        fit = [peer.presence.node for peer in self.registry if is_fit(peer.presence, self.me)]
        chosen = self._chosen.keeper if self._chosen else None
        if chosen in fit or (chosen is not None and self.mirrored.fenced) or not fit:
            return chosen
        best = rendezvous(self.me, fit)
        name = self.registry.name_of(best)
        log.info("node %s keeps copies of this node's durable jobs", name, extra={"action": "keeper_chosen"})
        await self._remember(Chosen(best, name))
        return best

    async def _remember(self, chosen: Chosen | None) -> None:
        """On disk before anything is sent to it: after a restart this node must know whom to ask."""
        if chosen != self._chosen:
            await self._file.write(chosen)
            self._chosen = chosen

    def _is_fit(self, node: NodeId) -> bool:
        peer = self.registry.get(node)
        return peer is not None and is_fit(peer.presence, self.me)

    # -- talking --------------------------------------------------------------------------------------------------

    async def _open(self, keeper: NodeId) -> None:
        """Find out what the keeper has, and whose the jobs are. Raises what `_step` is to stop for."""
        session = next(self._sessions)
        for asked in self.mirrored.open(session, live(self.book), self._data):
            reply = await self._compare(asked)
            self._check(session)
            allowed, moved = self.mirrored.compared(asked, reply)
            self._allow(allowed)
            await self._give_up(moved, keeper)
        await asyncio.gather(*self._dropped)
        while not self.mirrored.may_close:
            await asyncio.sleep(RIPE_S)
            self._check(session)
        await self._compare(self.mirrored.last(), LAST_S)
        self._check(session)
        self.mirrored.is_on = True
        self._away_since = None
        self.book.resume_held()
        log.info("keeper %s is in step", self._name, extra={"action": "keeper_compared"})

    def _check(self, session: str) -> None:
        if self.mirrored.session != session:
            raise TimeoutError("it stops")

    async def _compare(self, asked: Compare, timeout_s: float = ANSWER_S) -> Compared:
        assert self._chosen is not None
        subject = subjects.node(self._chosen.keeper, "compare")
        reply: Compared = await self.bus.call(subject, asked, Compared, timeout_s=timeout_s)
        if reply.status != "ok":
            raise TimeoutError(f"it says {reply.status!r}")
        return reply

    async def _give_up(self, ids: Collection[JobId], keeper: NodeId) -> None:
        for number, id in enumerate(ids):
            dropped = self.book.give_up(id, keeper)
            self._dropped.add(dropped)
            dropped.add_done_callback(self._dropped.discard)
            if (allowed := self._allowed.pop(id, None)) is not None and not allowed.done():
                allowed.set_exception(Moved())
            if number % FEW == FEW - 1:
                await asyncio.sleep(0)
        if ids:
            name = self.registry.name_of(keeper)
            log.warning("%d jobs are %s's now", len(ids), name, extra={"action": "jobs_moved", "count": len(ids)})

    async def _send(self, keeper: NodeId, *, more: bool) -> None:
        beat = bool(self.mirrored.fenced) and time.monotonic() - self._said > BEAT_S
        while (batch := self.mirrored.batch(self._data, more=more, beat=beat)) is not None:
            beat, self._said = False, time.monotonic()
            reply: Mirrored = await self.bus.call(subjects.node(keeper, "mirror"), batch, Mirrored, timeout_s=ANSWER_S)
            self._check(batch.session)
            if reply.status != "ok":
                raise TimeoutError(f"it says {reply.status!r}")
            self._allow(self.mirrored.took(batch))

    def _allow(self, ids: Collection[JobId]) -> None:
        for id in ids:
            allowed = self._allowed.pop(id, None)
            if allowed is not None and not allowed.done():
                allowed.set_result(None)

    async def released(self, message: Released) -> Noted:
        """The keeper stops in order: this node may end its jobs alone."""
        if self._chosen is not None and message.keeper == self._chosen.keeper:
            self._allow(self.mirrored.release())
            await self._remember(None)
            self.book.resume_held()
        return Noted(owner=self.me)
