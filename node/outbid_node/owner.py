"""The owning side of a node: it answers for the jobs it accepted until they end.

An interactive job lives in memory only: its caller waits, and the caller's own wait is the retry. A durable one has a
`Recorder` that keeps it on disk. Each award has a new attempt number, which is the fencing token: a settlement with any
other number is stale and refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from outbid_contracts import subjects
from outbid_contracts.codec import Format, encode
from outbid_contracts.errors import (
    AttemptFailed,
    Cancelled,
    DeadlineExceeded,
    Draining,
    NoBid,
    NodeLost,
    OutbidError,
    UnknownJob,
    from_body,
)
from outbid_contracts.events import AttemptLost, Chunk, Ended, Event, Finished
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import (
    Award,
    AwardReply,
    CancelAttempt,
    Done,
    Failed,
    Job,
    JobRecord,
    JobState,
    LeaseState,
    Outcome,
    SaveCheckpoint,
    Settle,
    Stopped,
)
from outbid_contracts.requests import Resume
from outbid_node import reasons
from outbid_node.auction import Auctioneer
from outbid_node.checkpoints import Checkpoints
from outbid_node.client import Bus
from outbid_node.delivered import Delivered
from outbid_node.estimating.trust import Trust
from outbid_node.owned import OwnedJob, now_ms
from outbid_node.placing import Placer, Unplaced
from outbid_node.registry import Registry
from outbid_node.waiting import WaitingRoom

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 5.0
"""How long a cancelled job waits for its runner's word before it ends anyway."""

KEEP_ENDED = 1000
"""Ended jobs whose bid sheets are kept in memory."""

KEEP_RESULTS_S = 60.0
"""How long a result is kept for a caller that asks again with the same job id."""


class Owner:
    """Drives every job this node accepted from auction to end."""

    def __init__(
        self,
        *,
        me: NodeId,
        bus: Bus,
        registry: Registry,
        auctioneer: Auctioneer,
        waiting: WaitingRoom,
        max_attempts: int,
        award_here: Callable[[Award], AwardReply],
        cancel_here: Callable[[CancelAttempt], None],
    ) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self.waiting = waiting
        waiting.quotas.running = self._running_of
        self._cancel_here = cancel_here
        self.checkpoints = Checkpoints()
        self.trust = Trust()
        self._lag = auctioneer.worker.lag
        registry.stretch = self.trust.stretch
        self.placer = Placer(
            me=me,
            bus=bus,
            registry=registry,
            auctioneer=auctioneer,
            waiting=waiting,
            checkpoints=self.checkpoints,
            max_attempts=max_attempts,
            award_here=award_here,
            stop_attempt=self._stop_attempt,
            tell=self._tell,
            tell_awarded=self._tell_awarded,
        )
        self.running: dict[JobId, OwnedJob] = {}
        self.ended: OrderedDict[JobId, OwnedJob] = OrderedDict()
        self.busy = asyncio.Event()
        """Set while jobs run; whoever watches over them sleeps otherwise. `idle` is its opposite."""
        self.idle = asyncio.Event()
        self.idle.set()
        self.on_ended: Callable[[OwnedJob], None] = lambda owned: None
        self.on_lost: Callable[[OwnedJob, NodeId, str], None] = lambda owned, node, code: None
        """An attempt there failed, with that error's code."""
        self.tells_short: Callable[[], bool] | None = None
        """Somebody looks on: whether the next event of a job that is too short to watch is told, too."""
        registry.on_change.append(self._node_changed)

    # -- what faces ask -------------------------------------------------------------------------------------------

    def find(self, id: JobId) -> OwnedJob | None:
        return self.running.get(id) or self.ended.get(id)

    def accept(
        self, job: Job, tell: Callable[[Any], None], delivered: Delivered | None = None, floor: int = 0
    ) -> OwnedJob:
        """Take the job on; `await owned.task` is its result, or raises what ended it. Raises Busy beyond a quota."""
        self.waiting.quotas.admit(job.submitter)
        self.ended.pop(job.id, None)
        return self.drive(OwnedJob(job, tell, delivered=delivered, floor=floor))

    def move(self, owned: OwnedJob, reply: str, tell: Callable[[Any], None], resume: Resume) -> None:
        """The caller of a running job lost its connection and is at `reply` now: it gets what it lacks and the rest."""
        owned.tell = tell
        owned.job = msgspec.structs.replace(owned.job, reply=reply)
        delivered = owned.delivered
        if delivered is None:
            return
        send: Callable[[Chunk], None] = tell
        start = delivered.forward(resume, send) if owned.outcome is not None else None
        if start is not None:
            if owned.state == "running":
                self._tell(owned, owned.award_event(start))
            delivered.replay(start)
            return
        delivered.believe(resume)
        if owned.outcome is not None and owned.node is not None and not owned.outcome.done():
            self._stop_attempt(owned, owned.node)
            owned.outcome.set_result(Stopped(reason="the caller lost a part of the stream and takes it up again"))

    def drive(self, owned: OwnedJob) -> OwnedJob:
        """Bring the job to its end, from where it is."""
        self.running[owned.job.id] = owned
        owned.task = asyncio.get_running_loop().create_task(self._run(owned))
        owned.task.add_done_callback(_retrieve)
        self.busy.set()
        self.idle.clear()
        return owned

    def forget_results(self) -> None:
        """Called each second: drop the results older than KEEP_RESULTS_S. One timer per job would keep every job of
        the last minute alive (5 KiB each, 5,000 jobs a second), whatever KEEP_ENDED says.
        """
        limit_ms = now_ms() - KEEP_RESULTS_S * 1000
        for owned in self.ended.values():
            if (owned.ended_ms or 0) > limit_ms:
                return
            owned.forget_result()

    def records(self, limit: int, state: JobState | None) -> list[JobRecord]:
        """The newest jobs first."""
        both = [*self.running.values(), *reversed(self.ended.values())]
        return [owned.record() for owned in both if state is None or owned.state == state][:limit]

    async def cancel(self, id: JobId) -> JobRecord:
        """Stop a job wherever it is; ends once its runner said so, or after STOP_TIMEOUT_S. An ended job stays as it
        is.
        """
        owned = self.find(id)
        if owned is None:
            raise UnknownJob(f"no job {id!r} here")
        if owned.sealing and owned.task is not None:
            await asyncio.wait({owned.task}, timeout=STOP_TIMEOUT_S)
        elif owned.task is not None and not owned.task.done():
            owned.cancelling = True
            if owned.outcome is not None and owned.node is not None:
                self._stop_attempt(owned, owned.node)
                await asyncio.wait({owned.task}, timeout=STOP_TIMEOUT_S)
            if not owned.sealing:
                owned.task.cancel()
            await asyncio.wait({owned.task}, timeout=1.0)
        return owned.record()

    def suspend(self, which: Callable[[OwnedJob], bool]) -> None:
        """Stop driving these durable jobs: they are on disk as they are, and their attempts elsewhere go on."""
        for owned in list(self.running.values()):
            if owned.recorder is not None and owned.task is not None and not owned.sealing and which(owned):
                owned.suspended = True
                owned.task.cancel()

    async def cancel_all(self, reason: OutbidError) -> None:
        """The node shuts down: end every job with `reason`; durable ones are only let go of."""
        for owned in list(self.running.values()):
            if owned.recorder is None and not owned.sealing:
                owned.error = reason
                self._abandon(owned)
                if owned.task is not None:
                    owned.task.cancel()
        self.suspend(lambda owned: True)
        tasks = {owned.task for owned in self.running.values() if owned.task}
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    def let_go(self, id: JobId) -> None:
        """Stop driving a durable job, without an end: it is another node's."""
        owned = self.running.get(id)
        if owned is not None and owned.task is not None and not owned.sealing:
            owned.suspended, owned.recorder = True, None
            self._abandon(owned)
            owned.task.cancel()

    # -- what contractors say -------------------------------------------------------------------------------------

    def heard(self, chunk: Chunk) -> None:
        """This node's own worker sent a piece to the caller."""
        owned = self.running.get(chunk.job)
        if owned is not None and owned.delivered is not None:
            owned.delivered.heard(chunk)

    def saved(self, save: SaveCheckpoint) -> None:
        """Keep a checkpoint, unless its attempt is not the current one."""
        owned = self._current(save.job, save.attempt)
        if owned is not None and owned.node == save.node:
            self.checkpoints.keep(owned.saved(save.checkpoint), durable=owned.recorder is not None)

    def _current(self, id: JobId, attempt: int) -> OwnedJob | None:
        """The job, if that attempt is under way (fencing)."""
        owned = self.running.get(id)
        if owned is None or owned.number != attempt or owned.outcome is None or owned.outcome.done():
            return None
        return owned

    def settle(self, settle: Settle) -> bool:
        """Take a result; False if its attempt is not the current one."""
        owned = self._current(settle.job, settle.attempt)
        if owned is None or owned.outcome is None:
            return False
        owned.taken, owned.energy_j, owned.cost_usd = settle.attempt, settle.energy_j, settle.cost_usd
        if settle.node != self.me:
            self.registry.note_free(settle.node, owned.job.capability, owned.ran_model, settle.free)
        owned.outcome.set_result(settle.outcome)
        return True

    def leased(self) -> dict[NodeId, list[OwnedJob]]:
        """The attempts under way on other nodes, by node."""
        by_node: dict[NodeId, list[OwnedJob]] = {}
        for owned in self.running.values():
            if owned.node is not None and owned.node != self.me and owned.outcome is not None:
                by_node.setdefault(owned.node, []).append(owned)
        return by_node

    def leases_answered(self, asked: dict[JobId, int], state: LeaseState) -> None:
        """Attempts their node does not know are lost (it restarted, or dropped them)."""
        for id, number in state.unknown:
            owned = self.running.get(id)
            if owned is not None and owned.number == number and asked.get(id) == number:
                self._lose(owned, f"{self.registry.name_of(state.node)} does not run the job any more")

    # -- the life of a job ----------------------------------------------------------------------------------------

    async def _run(self, owned: OwnedJob) -> Finished:
        try:
            error = await self._ending(owned)
            if owned.suspended:
                raise owned.error or Draining()
            await self._seal(owned)
        except BaseException:
            self._retire(owned)
            raise
        self._retire(owned)
        if error is not None:
            raise error
        assert owned.finished is not None
        return owned.finished

    async def _ending(self, owned: OwnedJob) -> OutbidError | None:
        """Drive the job to its end; None if it is done, else what ended it."""
        try:
            owned.finished = await self._in_time(owned)
            owned.state, owned.sealing = "done", True
            return None
        except TimeoutError:
            self._abandon(owned)
            late = DeadlineExceeded(f"not done within the deadline of {owned.job.policy.deadline_s:g} s")
            return owned.end_with(late, "failed")
        except asyncio.CancelledError:
            if owned.suspended:
                return None
            self._abandon(owned)
            return owned.end_with(owned.error or Cancelled(), "cancelled")
        except Unplaced as unplaced:
            owned.suspended = True
            owned.error = NoBid(str(unplaced))
            return None
        except OutbidError as error:
            state: JobState = "cancelled" if isinstance(error, Cancelled) else "failed"
            return owned.end_with(error, state)
        except Exception as error:  # a mistake of ours must not leave a job without an end
            log.exception("driving %s failed", owned.job.id, extra={"action": "job_failed_inside"})
            self._abandon(owned)
            return owned.end_with(OutbidError(f"internal error: {type(error).__name__}: {error}"), "failed")

    async def _in_time(self, owned: OwnedJob) -> Finished:
        """Raises TimeoutError at its deadline."""
        left_s = owned.time_left_s()
        if left_s is None:
            return await self._attempts(owned)
        async with asyncio.timeout(left_s):
            return await self._attempts(owned)

    async def _seal(self, owned: OwnedJob) -> None:
        """Nothing changes the end of a job any more. A durable one's is on disk when this returns."""
        owned.sealing = True
        if owned.recorder is not None:
            await owned.recorder.ended(owned)
        owned.conclude()

    async def _attempts(self, owned: OwnedJob) -> Finished:
        while True:
            if owned.outcome is None:  # else an attempt found again after a restart
                if owned.whole() is not None:
                    return self._complete(owned)
                await self.placer.place(owned)
            assert owned.outcome is not None
            outcome = await owned.outcome
            owned.outcome = None
            finished = self._conclude(owned, outcome)
            if finished is not None:
                return finished
            if owned.delivered is not None:
                await owned.delivered.end()
            owned.conclude()

    def _judge(self, owned: OwnedJob, node: NodeId, *, done: bool) -> None:
        """Hold the node's promise against what the attempt took, from its award to now, but for this daemon's lag."""
        if owned.promised_s is not None and owned.awarded:
            took_s = time.monotonic() - owned.awarded
            promised_s = owned.promised_s + self._lag.seconds
            self.trust.note(node, owned.job.capability, promised_s, took_s, done=done)

    def _complete(self, owned: OwnedJob) -> Finished:
        """The caller has all of it. Under a number of its own: a result that the lost attempt still brings is stale."""
        whole = owned.whole()
        assert whole is not None
        owned.number = max(owned.number, owned.floor) + 1
        if owned.recorder is not None:
            owned.recorder.completed(owned, whole)
        return whole

    def _conclude(self, owned: OwnedJob, outcome: Outcome) -> Finished | None:
        """The result; None if the job goes on elsewhere. Raises what ended it otherwise."""
        node = owned.node
        assert node is not None
        if isinstance(outcome, Done):
            outcome = owned.joined(outcome)
            owned.name = self.registry.name_of(node) if owned.name in ("", node) else owned.name
        if isinstance(outcome, Done):
            owned.took_s = time.monotonic() - owned.awarded
            owned.timings = outcome.timings
            self._judge(owned, node, done=True)
            owned.close_attempt(None, "")
            return Finished(
                job=owned.job.id,
                node=node,
                name=owned.name,
                attempt=owned.number,
                result=outcome.result,
                chunks=outcome.chunks,
                timings=outcome.timings,
            )
        self._judge(owned, node, done=False)
        if isinstance(outcome, Stopped):
            owned.close_attempt(Cancelled(), "")
            if owned.cancelling:
                raise Cancelled
            given_back = Draining(outcome.reason) if outcome.reason else AttemptFailed("the node stopped the attempt")
            outcome = Failed(error=given_back.body())
        error = from_body(outcome.error)
        owned.close_attempt(error, outcome.traceback)
        resumed = owned.resumed is not None or (owned.delivered is not None and owned.delivered.base > 0)
        if not outcome.retry and not resumed:  # what a resumed attempt was asked is ours, not the caller's
            raise error
        log.warning("%s failed: %s", owned.job.id, error, extra={"action": "attempt_failed", "node": node})
        self.on_lost(owned, node, error.code)
        if not isinstance(error, Draining):
            owned.failed_on.add(node)
        owned.state, owned.node = "waiting", None
        more = owned.tries < self.placer.most(owned) or owned.whole() is not None
        self._tell(
            owned, AttemptLost(job=owned.job.id, node=node, attempt=owned.number, error=outcome.error, retry=more)
        )
        if not more:
            raise reasons.exhausted(owned.attempts, self.registry)
        if owned.recorder is not None:
            owned.recorder.lost(owned)
        return None

    def _tell(self, owned: OwnedJob, event: Event) -> None:
        owned.tell(event)
        if owned.watched or (self.tells_short is not None and self.tells_short()):
            self.bus.post(subjects.job_event(owned.job.id), encode(event, Format.JSON))

    def _tell_awarded(self, owned: OwnedJob) -> None:
        """The event is made only where somebody hears of it."""
        if owned.is_told or owned.watched or self.tells_short is not None:
            self._tell(owned, owned.award_event(owned.delivered.base if owned.delivered else 0))

    def _tell_end(self, owned: OwnedJob) -> None:
        """Watchers hear that and how it ended; the result itself is the caller's."""
        if not (owned.watched or (self.tells_short is not None and self.tells_short())):
            return
        end: Event = Ended(job=owned.job.id, error=(owned.error or Cancelled()).body())
        if owned.finished is not None:
            end = msgspec.structs.replace(owned.finished, result={})
        self.bus.post(subjects.job_event(owned.job.id), encode(end, Format.JSON))

    def _running_of(self, submitter: str) -> int:
        """Jobs of that submitter with an attempt under way."""
        mine = (owned for owned in self.running.values() if owned.job.submitter == submitter)
        return sum(o.state == "running" and o.outcome is not None and not o.outcome.done() for o in mine)

    # -- helpers --------------------------------------------------------------------------------------------------

    def _node_changed(self, node: NodeId, what: str) -> None:
        if what in ("gone", "restarted"):
            self.lose_node(node, what)

    def lose_node(self, node: NodeId, why: str) -> None:
        """Every attempt there is void."""
        for owned in list(self.running.values()):
            if owned.node == node and owned.awarded:
                self._lose(owned, f"node {self.registry.name_of(node)} {why}")

    def _lose(self, owned: OwnedJob, why: str) -> None:
        if owned.outcome is not None and not owned.outcome.done():
            owned.outcome.set_result(Failed(error=NodeLost(why).body()))
            if owned.node is not None and owned.delivered is not None:
                self._stop_attempt(owned, owned.node)  # it may only be cut off, and go on sending

    def _stop_attempt(self, owned: OwnedJob, node: NodeId) -> None:
        message = CancelAttempt(job=owned.job.id, attempt=owned.number)
        if node == self.me:
            self._cancel_here(message)
        else:
            self.bus.post(subjects.node(node, "cancel"), encode(message))

    def _abandon(self, owned: OwnedJob) -> None:
        """Whoever waited for the outcome gave up, so nobody would take it: stop the attempt."""
        if owned.outcome is not None and owned.node is not None:
            self._judge(owned, owned.node, done=False)
            self._stop_attempt(owned, owned.node)

    def _retire(self, owned: OwnedJob) -> None:
        """Keep what `outbid why` shows; the prompt goes now, the result a little later."""
        owned.outcome = None
        if owned.delivered is not None:
            owned.delivered.close()
            owned.delivered = None
        self.running.pop(owned.job.id, None)
        if not self.running:
            self.busy.clear()
            self.idle.set()
        if owned.suspended and owned.recorder is not None:
            owned.conclude()
            owned.recorder.unplaced(owned)
            return
        self.checkpoints.forget(owned.job.id)
        if owned.suspended:
            owned.conclude()
            return
        owned.ended_ms = owned.ended_ms or now_ms()
        self._tell_end(owned)
        if owned.job.params:
            owned.job = msgspec.structs.replace(owned.job, params={})
        self.ended[owned.job.id] = owned
        self.on_ended(owned)
        while len(self.ended) > KEEP_ENDED:
            self.ended.popitem(last=False)


def _retrieve(task: asyncio.Task[Finished]) -> None:
    """Whoever waits for the job sees the error; with nobody waiting it is in the record, not in the log."""
    if not task.cancelled():
        task.exception()
