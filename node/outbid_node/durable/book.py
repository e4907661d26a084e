"""The durable jobs this node owns, from acknowledgement to end.

Each is in one of three places: parked here (waiting), driven by the owner (from its turn to its end), or on disk only
(ended). What changes is written to the journal; a job is acknowledged, and its end told, once that is on disk.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import msgspec

from outbid_contracts.digest import digest
from outbid_contracts.durable import DurableJob
from outbid_contracts.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    OutbidError,
    StorageFailed,
)
from outbid_contracts.events import Finished
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import Done, Job, JobRecord, JobState, Settle
from outbid_node import pace
from outbid_node.company import thrifty
from outbid_node.delivered import Delivered
from outbid_node.durable.checkpoints import CheckpointStream
from outbid_node.durable.claims import Claims
from outbid_node.durable.dependencies import Dependencies, States
from outbid_node.durable.events import Events
from outbid_node.durable.journal import Journal
from outbid_node.durable.parked import LOOK_S, Alarms, Parked, as_record, failed_on
from outbid_node.durable.records import HEIR, TERM, about, ending, fitting, note_settled, record_of
from outbid_node.durable.recovery import FEW, Recovery
from outbid_node.owned import OwnedJob, now_ms
from outbid_node.owner import STOP_TIMEOUT_S, Owner
from outbid_node.reasons import nobody_able
from outbid_node.registry import Registry
from outbid_node.trace import Trace
from outbid_node.waiting import WaitingRoom

log = logging.getLogger(__name__)

UNPLACED_S = 5.0
"""How long a job that no bid satisfies waits before it is offered again."""

READY_S = 10.0
"""How long a request waits for a node that has just started to find its jobs again."""


class Moved(OutbidError):
    """Another node took the job over while this one was away."""

    code = "moved"
    status = 409


class Book:
    """Implements `Recorder` for the owner's durable jobs."""

    def __init__(
        self,
        *,
        me: NodeId,
        owner: Owner,
        registry: Registry,
        waiting: WaitingRoom,
        journal: Journal,
        events: Events,
        checkpoints: CheckpointStream,
        trace: Trace,
    ) -> None:
        self.me = me
        self.owner = owner
        self.registry = registry
        self.waiting = waiting
        self.journal = journal
        self.events = events
        self.checkpoints = checkpoints
        self.trace = trace
        self.parked: dict[JobId, Parked] = {}
        self.claims = Claims()
        self.ready = asyncio.Event()
        """Set when the jobs of the life before are found again."""
        self.not_ours: Callable[[Sequence[DurableJob]], Awaitable[Mapping[JobId, NodeId]]] = _all_ours
        """Asked before recovered jobs go on: which of them did other nodes take over meanwhile, and who?"""
        self.may_end: Callable[[DurableJob], Awaitable[None]] = _at_once
        """Returns when this node may record this end; raises Moved if another node took the job over."""
        self.holds: Callable[[JobId], str] = lambda id: ""
        """Why a job whose turn it is must not start here, if so: another node may have taken it over."""
        self.held: dict[JobId, Parked] = {}
        self.ending: dict[JobId, DurableJob] = {}
        """Jobs whose end is on its way to the disk."""
        self.pieces_of: Callable[[Job], Delivered | None] = lambda job: None
        """How a streamed job goes on elsewhere, if it can."""
        self.term = 0
        self.recovery = Recovery(self)
        self.after = Dependencies(unblock=self.unblock, fail=self.fail, states_here=self.states_of)
        self._alarms = Alarms(self._ring)
        self._ends: dict[JobId, asyncio.Future[DurableJob]] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self._closing = False

    # -- what faces ask -------------------------------------------------------------------------------------------

    async def accept(self, records: Sequence[DurableJob]) -> None:
        """Take new jobs on; returns when all are on disk. Raises StorageFailed, and Busy beyond a quota; then none is
        taken.
        """
        for submitter, jobs in Counter(record.job.submitter for record in records).items():
            self.waiting.quotas.admit(submitter, jobs)
        await (self.journal.put(records[0]) if len(records) == 1 else self._store(records))
        for record in records:
            self.trace.note("accepted", heirs=record.heirs, **about(record))
            self.park(record)

    async def _store(self, records: Sequence[DurableJob]) -> None:
        stored = await asyncio.gather(*(self.journal.put(record) for record in records), return_exceptions=True)
        failed = [error for error in stored if isinstance(error, BaseException)]
        if failed:
            kept = [r for r, error in zip(records, stored, strict=True) if not isinstance(error, BaseException)]
            await asyncio.gather(*(self.journal.drop(record.job.id) for record in kept), return_exceptions=True)
            raise failed[0] if isinstance(failed[0], OutbidError) else StorageFailed(str(failed[0]))

    async def until_ready(self) -> None:
        """Raises StorageFailed if the jobs of the life before are not read within READY_S."""
        if self.ready.is_set():
            return
        try:
            async with asyncio.timeout(READY_S):
                await self.ready.wait()
        except TimeoutError:
            why = self.journal.problem or "it takes long"
            raise StorageFailed(f"this node has not read its durable jobs yet ({why}); try again in a moment") from None

    def owns(self, id: JobId) -> bool:
        """Whether it is a durable job of this node that has not ended."""
        running = self.owner.running.get(id)
        return id in self.parked or id in self.ending or (running is not None and running.recorder is not None)

    async def find(self, id: JobId) -> JobRecord | None:
        """What is known of one of this node's durable jobs."""
        parked = self.parked.get(id)
        if parked is not None:
            return as_record(parked.record(), self.reason(parked))
        running = self.owner.running.get(id)
        if running is not None and running.recorder is not None:
            return running.record()
        if id in self.ending:
            return as_record(msgspec.structs.replace(self.ending[id], state="waiting"), "its end is being recorded")
        ended = await self.ended_record(id)
        return as_record(ended) if ended is not None else None

    async def ended_record(self, id: JobId) -> DurableJob | None:
        """Of a durable job that ended here. Raises StorageFailed if the disk does not say."""
        return await self.journal.ended(id) if self.journal.term else None

    def records(self, limit: int, state: JobState | None) -> list[JobRecord]:
        """The newest parked ones."""
        if state not in (None, "waiting"):
            return []
        newest = list(self.parked.values())[-limit:]
        return [as_record(parked.record(), self.reason(parked)) for parked in newest]

    async def states_of(self, ids: Collection[JobId]) -> States:
        """Of those among them that are durable jobs of this node."""
        found: dict[JobId, JobState] = {id: "waiting" for id in ids if self.owns(id)}
        for id in ids:
            if id not in found and (record := await self.ended_record(id)) is not None:
                found[id] = record.state
        return found

    async def end_of(self, id: JobId, wait_s: float) -> DurableJob | None:
        """The record of an ended job; None if it has not ended within `wait_s`, or is not known here."""
        if not self.owns(id):
            return await self.ended_record(id)
        end = self._ends.setdefault(id, asyncio.get_running_loop().create_future())
        await asyncio.wait({end}, timeout=wait_s)
        return end.result() if end.done() and not end.cancelled() else None

    async def cancel(self, id: JobId) -> JobRecord | None:
        """Stop it wherever it is; an ended one stays as it is. None: not a durable job of this node."""
        if id in self.parked:
            ending = self._spawn(self._end_parked(self.parked[id], Cancelled(), "cancelled"))
            await asyncio.wait({ending}, timeout=STOP_TIMEOUT_S)
        elif self.owns(id):
            await self.owner.cancel(id)
        return await self.find(id)

    def reason(self, parked: Parked) -> str:
        """Why it waits, for people."""
        if parked.after:
            return f"waits for {', '.join(sorted(parked.after))}"
        if parked.ticket is None and parked.not_before_ms > now_ms():
            return f"not before {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(parked.not_before_ms / 1000))}"
        if parked.ticket is None or not len(self.registry.places(*parked.key)):
            return parked.reason or nobody_able(*parked.key, self.registry).message
        return parked.ticket.reason or "every able node is busy"

    # -- what contractors say -------------------------------------------------------------------------------------

    async def settle(self, settle: Settle) -> bool | None:
        """Take a result; returns when what follows from it is on disk. False: stale. None: ask again later."""
        if not self.ready.is_set():
            return None
        owned = self.owner.running.get(settle.job)
        if owned is None:
            return await self._settled_before(settle)
        accepted = self.owner.settle(settle) or owned.taken == settle.attempt
        note_settled(self.trace, settle, accepted=accepted)
        if accepted and (owned.sealing or owned.outcome is not None):
            await asyncio.shield(owned.until_concluded())
        return None if owned.suspended else accepted

    async def _settled_before(self, settle: Settle) -> bool:
        """A contractor that did not hear our word asks again."""
        record = await self.ended_record(settle.job)
        accepted = record is not None and record.number == settle.attempt and record.finished is not None
        note_settled(self.trace, settle, accepted=accepted)
        return accepted

    def settle_here(self, settle: Settle) -> bool:
        """A result of this node's own, for the owner; its end follows by itself."""
        accepted = self.owner.settle(settle)
        if settle.job in self.owner.running and self.owner.running[settle.job].recorder is not None:
            note_settled(self.trace, settle, accepted=accepted)
        return accepted

    # -- waiting --------------------------------------------------------------------------------------------------

    def park(self, record: DurableJob, *, delay_s: float = 0.0, reason: str = "") -> None:
        parked = self.parked[record.job.id] = Parked(record)
        parked.reason = reason
        if parked.deadline is not None:
            self._alarms.after(parked.deadline, parked.id)
        if delay_s:
            self._alarms.after(time.monotonic() + delay_s, parked.id)
        elif parked.after:
            self.after.watch(parked)
        else:
            self._queue_in_time(parked, record)

    def unblock(self, parked: Parked) -> None:
        """The jobs before it are done."""
        self._later(self.journal.put(parked.unblock()))
        self._queue_in_time(parked)

    def _queue_in_time(self, parked: Parked, record: DurableJob | None = None) -> None:
        if parked.starts is not None and parked.starts > time.monotonic():
            self._alarms.after(parked.starts, parked.id)
        elif parked.starts is None and parked.not_before_ms > now_ms():
            self._alarms.at(parked.not_before_ms, parked.id)
        elif record is None or not self._goes_at_once(parked, record):
            self._queue(parked)

    def _goes_at_once(self, parked: Parked, record: DurableJob) -> bool:
        """Most do: then nothing of the queue is needed, nor its record decoded again."""
        want = partial(parked.want, record)
        ticket = self.waiting.ticket(parked.key, parked.order, lambda: None, parked.submitter, want)
        if thrifty(record.job.policy) or not self.waiting.passes(ticket):
            return False
        parked.ticket = ticket
        self._start(parked, record)
        return True

    def fail(self, parked: Parked, error: OutbidError) -> None:
        self._spawn(self._end_parked(parked, error, "failed"))

    def _queue(self, parked: Parked) -> None:
        parked.ticket = self.waiting.ticket(
            parked.key, parked.order, lambda: self._start(parked), parked.submitter, parked.want
        )
        self.waiting.queue(parked.ticket)

    def requeue(self, parked: Parked) -> None:
        """At its place in the queue as it is now, if it has one."""
        if parked.ticket is not None:
            self.waiting.leave(parked.ticket)
            self._queue(parked)

    def _ring(self, id: JobId) -> None:
        parked = self.parked.get(id)
        if parked is None:
            return
        if parked.deadline is not None and parked.deadline <= time.monotonic():
            self.fail(parked, DeadlineExceeded("the deadline passed while the job waited"))
        elif parked.ticket is None and not parked.after:
            self._queue_in_time(parked)

    def _start(self, parked: Parked, record: DurableJob | None = None) -> None:
        if self._closing:
            return
        if why := self.holds(parked.id):
            self._hold(parked, why)
            return
        owned = self.owned(record or parked.record())
        if owned.delivered is not None and owned.attempts:
            self._spawn(self._start_after(parked, owned, owned.delivered))
        else:
            self._go(parked, owned)

    async def _start_after(self, parked: Parked, owned: OwnedJob, delivered: Delivered) -> None:
        """An earlier attempt may have got somewhere."""
        with suppress(StorageFailed):
            delivered.load(await self.events.replay(parked.id))
        if self.parked.get(parked.id) is parked:
            self._go(parked, owned)

    def _go(self, parked: Parked, owned: OwnedJob) -> None:
        del self.parked[parked.id]
        owned.ticket, owned.deadline = parked.ticket, parked.deadline
        self.owner.drive(owned)

    def _hold(self, parked: Parked, why: str) -> None:
        """Until `resume_held`. Its place is left a little later, so that a whole queue is not held in one go."""
        ticket, parked.ticket, parked.reason = parked.ticket, None, why
        self.held[parked.id] = parked
        if ticket is not None:
            asyncio.get_running_loop().call_soon(self.waiting.leave, ticket)

    def resume_held(self) -> None:
        held, self.held = self.held, {}
        if held:
            self._spawn(self._resume(list(held.values())))

    async def _resume(self, held: list[Parked]) -> None:
        for number, parked in enumerate(held):
            if self.parked.get(parked.id) is parked and parked.ticket is None:
                self._queue(parked)
            if number % FEW == FEW - 1:
                await asyncio.sleep(0)

    def owned(self, record: DurableJob) -> OwnedJob:
        owned = OwnedJob(record.job, lambda event: self._tell(owned, event))
        owned.recorder = self
        owned.terms = record.terms
        owned.number = record.number
        owned.floor = record.heirs * HEIR + (self.term * TERM if record.number or self.term > 1 else 0)
        owned.attempts = list(record.attempts)
        owned.failed_on = failed_on(record)
        owned.heirs = record.heirs
        owned.delivered = self.pieces_of(record.job)
        if owned.delivered is not None:
            owned.delivered.model = record.model
        return owned

    async def _end_parked(self, parked: Parked, error: OutbidError, state: JobState) -> None:
        if self.parked.pop(parked.id, None) is None:
            return
        self._unpark(parked)
        self.owner.checkpoints.forget(parked.id)
        record = parked.record()
        ended = msgspec.structs.replace(record, state=state, error=error.body(), ended_ms=now_ms())
        with suppress(Moved):
            await self._end(ended, None)

    def _unpark(self, parked: Parked) -> None:
        self.after.forget(parked)
        self.held.pop(parked.id, None)
        if parked.ticket is not None:
            self.waiting.leave(parked.ticket)

    # -- Recorder -------------------------------------------------------------------------------------------------

    def awarding(self, owned: OwnedJob) -> None:
        base = owned.delivered.base if owned.delivered else 0
        self.trace.note("awarded", job=owned.job.id, attempt=owned.number, to=owned.node, chunks=base)

    def awarded(self, owned: OwnedJob) -> None:
        if owned.watched:
            self._later(self.journal.put(record_of(owned)))

    def lost(self, owned: OwnedJob) -> None:
        self._later(self.journal.put(record_of(owned)))

    def completed(self, owned: OwnedJob, whole: Finished) -> None:
        self.trace.note("awarded", job=whole.job, attempt=owned.number, to=self.me)
        settle = Settle(job=whole.job, attempt=owned.number, node=self.me, outcome=Done(result=whole.result))
        note_settled(self.trace, settle, accepted=True)

    async def ended(self, owned: OwnedJob) -> None:
        owned.ended_ms = now_ms()
        try:
            await self._end(record_of(owned), owned)
        except Moved:
            owned.suspended, owned.recorder = True, None
            raise

    def unplaced(self, owned: OwnedJob) -> None:
        why = owned.error.message if owned.error else ""
        if not self._closing:
            owned.state, owned.node = "waiting", None
            self.park(record_of(owned), delay_s=UNPLACED_S, reason=why)
        elif owned.node == self.me and owned.attempts and owned.attempts[-1].ended_ms is None:
            owned.close_attempt(Draining(why), "")
            owned.state, owned.node = "waiting", None
            self._later(self.journal.put(record_of(owned)))

    async def _end(self, record: DurableJob, owned: OwnedJob | None) -> None:
        record = fitting(record)
        id = record.job.id
        self.ending[id] = record
        try:
            await self.may_end(record)
            await self.journal.end(record)
        finally:
            del self.ending[id]
        self.note_end("ended", record)
        if owned is None or owned.watched or owned.job.reply:
            self.events.post(id, ending(record))
        end = self._ends.pop(id, None)
        if end is not None and not end.done():
            end.set_result(record)
        self.after.ended(id, record.state)

    def note_end(self, what: Literal["ended", "inherited"], record: DurableJob) -> None:
        if self.trace.on:
            result = digest(record.finished.result) if record.finished else ""
            self.trace.note(what, job=record.job.id, state=record.state, attempt=record.number, digest=result)

    def _tell(self, owned: OwnedJob, event: Any) -> None:
        if owned.watched:
            self.events.post(owned.job.id, event)

    def give_up(self, id: JobId, to: NodeId) -> asyncio.Future[None]:
        """Another node owns it now; done when that is on disk."""
        self.trace.note("moved", job=id, to=to)
        parked = self.parked.pop(id, None)
        if parked is not None:
            self._unpark(parked)
        self.owner.let_go(id)
        self.owner.checkpoints.forget(id)
        if (end := self._ends.pop(id, None)) is not None:
            end.cancel()
        dropped = self.journal.drop(id)
        self._later(dropped)
        return dropped

    # -- life -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        self.journal.on_open = self.recovery.recover
        if await self.journal.open():
            await self._recover_surely()
        while True:
            await pace.next_beat()
            self._alarms.ring()
            await self.after.look()

    async def _recover_surely(self) -> None:
        while True:
            try:
                return await self.recovery.recover()
            except StorageFailed as error:
                log.error("%s", error.message, extra={"action": "jobs_unread"})
                await asyncio.sleep(LOOK_S)

    def pause(self) -> None:
        """The node stops: start nothing, and let go of what does not run on this node."""
        self._closing = True
        self.owner.suspend(lambda owned: owned.node != self.me)

    async def close(self) -> None:
        """The owner let go of the running ones by now."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await self.journal.close()

    def _later(self, written: asyncio.Future[None]) -> None:
        """Nobody waits for this write; the journal itself tries until it is done."""
        written.add_done_callback(_read)

    def _spawn(self, work: Any) -> asyncio.Future[Any]:
        task: asyncio.Future[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _read(written: asyncio.Future[None]) -> None:
    if not written.cancelled() and (error := written.exception()):
        log.error("not written: %s", error, extra={"action": "journal_failed"})


async def _all_ours(records: Sequence[DurableJob]) -> Mapping[JobId, NodeId]:
    return {}


async def _at_once(record: DurableJob) -> None:
    pass
