"""The owning side of a node: it answers for the jobs it accepted until they end.

An interactive job lives in memory only: its caller waits, and the caller's own wait is the retry. Each award has a new
attempt number, which is the fencing token: a settlement with any other number is stale and refused.
"""

from __future__ import annotations

import asyncio
import itertools
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
    AttemptsExhausted,
    Cancelled,
    DeadlineExceeded,
    NoBid,
    NodeLost,
    OutbidError,
    UnknownJob,
    UnknownModel,
    from_body,
)
from outbid_contracts.events import AttemptLost, Awarded, Ended, Event, Finished, Waiting
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import (
    Accepted,
    AttemptRecord,
    Award,
    AwardReply,
    Bid,
    CancelAttempt,
    Considered,
    Decline,
    Declined,
    Done,
    Failed,
    Job,
    JobRecord,
    JobState,
    LeaseState,
    Outcome,
    Settle,
    Stopped,
)
from outbid_node.auction import Auction, Auctioneer
from outbid_node.client import Bus, NoResponders
from outbid_node.owned import OwnedJob, now_ms
from outbid_node.registry import Registry
from outbid_node.waiting import WaitingRoom

log = logging.getLogger(__name__)

AWARD_TIMEOUT_S = 1.0
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
        self.auctioneer = auctioneer
        self.waiting = waiting
        self.max_attempts = max_attempts
        self._award_here = award_here
        self._cancel_here = cancel_here
        self.running: dict[JobId, OwnedJob] = {}
        self.ended: OrderedDict[JobId, OwnedJob] = OrderedDict()
        self.busy = asyncio.Event()
        """Set while jobs run; whoever watches over them sleeps otherwise. `idle` is its opposite."""
        self.idle = asyncio.Event()
        self.idle.set()
        registry.on_change.append(self._node_changed)

    # -- what faces ask -------------------------------------------------------------------------------------------

    def find(self, id: JobId) -> OwnedJob | None:
        return self.running.get(id) or self.ended.get(id)

    def accept(self, job: Job, tell: Callable[[Any], None]) -> OwnedJob:
        """Take the job on; `await owned.task` is its result, or raises what ended it."""
        owned = OwnedJob(job, tell)
        self.running[job.id] = owned
        owned.task = asyncio.create_task(self._run(owned))
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
        if owned.task is not None and not owned.task.done():
            owned.cancelling = True
            if owned.outcome is not None and owned.node is not None:
                self._stop_attempt(owned, owned.node)
                await asyncio.wait({owned.task}, timeout=STOP_TIMEOUT_S)
            owned.task.cancel()
            await asyncio.wait({owned.task}, timeout=1.0)
        return owned.record()

    async def cancel_all(self, reason: OutbidError) -> None:
        """The node shuts down: end every job with `reason`."""
        for owned in list(self.running.values()):
            owned.error = reason
            if owned.outcome is not None and owned.node is not None:
                self._stop_attempt(owned, owned.node)
            if owned.task is not None:
                owned.task.cancel()
        tasks = {owned.task for owned in self.running.values() if owned.task}
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    # -- what contractors say -------------------------------------------------------------------------------------

    def settle(self, settle: Settle) -> bool:
        """Take a result; False if its attempt is not the current one (fencing)."""
        owned = self.running.get(settle.job)
        if owned is None or owned.number != settle.attempt or owned.outcome is None or owned.outcome.done():
            return False
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
            async with asyncio.timeout(owned.job.policy.deadline_s):
                owned.finished = await self._attempts(owned)
                owned.state = "done"
                return owned.finished
        except TimeoutError:
            self._abandon(owned)
            late = DeadlineExceeded(f"not done within the deadline of {owned.job.policy.deadline_s:g} s")
            raise owned.end_with(late, "failed") from None
        except asyncio.CancelledError:
            self._abandon(owned)
            raise owned.end_with(owned.error or Cancelled(), "cancelled") from None
        except OutbidError as error:
            state: JobState = "cancelled" if isinstance(error, Cancelled) else "failed"
            raise owned.end_with(error, state) from None
        finally:
            self._retire(owned)

    async def _attempts(self, owned: OwnedJob) -> Finished:
        while True:
            winner = await self._place(owned)
            assert owned.outcome is not None
            outcome = await owned.outcome
            owned.outcome = None
            finished = self._conclude(owned, winner, outcome)
            if finished is not None:
                return finished

    async def _place(self, owned: OwnedJob) -> Considered:
        """Auction until some node holds the lease. Raises NoBid, UnknownModel or AttemptsExhausted."""
        job = owned.job
        await self.waiting.queue(job, owned.tell)
        for turn in itertools.count():
            if len(owned.attempts) >= self.max_attempts:
                raise self._exhausted(owned)
            auction = await self._auction(owned)
            owned.auctions.append(auction)
            for considered in auction.able:
                if await self._award(owned, considered, auction):
                    return considered
            if not auction.waiting_may_help:
                raise self._no_bid(owned, auction)
            for decline in auction.declines:
                self.registry.note_full(decline.node, job.capability, job.model)
            owned.auctions.pop()
            self._tell(owned, Waiting(job=job.id, reason=_reasons(auction, self.registry)))
            await self.waiting.wait(job)
            # Room that is not there after all must not make this loop spin.
            await asyncio.sleep(min(0.25, 0.002 * turn))
        raise AssertionError  # itertools.count() does not end

    async def _auction(self, owned: OwnedJob) -> Auction:
        """Without the nodes where an attempt failed, unless nobody else is left."""
        auction = await self.auctioneer.hold(owned.job, owned.number + 1, owned.failed_on)
        if owned.failed_on and not auction.able and not auction.waiting_may_help:
            auction = await self.auctioneer.hold(owned.job, owned.number + 1, ())
        return auction

    async def _award(self, owned: OwnedJob, considered: Considered, auction: Auction) -> bool:
        bid = considered.bid
        owned.number += 1
        owned.outcome = asyncio.get_running_loop().create_future()
        owned.node = bid.node
        award = Award(job=owned.job, attempt=owned.number, bid_id=bid.bid_id)
        self.registry.take(bid.node, owned.job.capability, bid.model)
        owned.awarded = time.monotonic()
        reply = await self._send_award(owned, award, bid)
        if isinstance(reply, Accepted):
            self._accepted(owned, considered, auction)
            self.registry.note_free(bid.node, owned.job.capability, bid.model, reply.free)
            return True
        owned.node = owned.outcome = None
        auction.declines.append(
            Decline(node=bid.node, job=owned.job.id, code=reply.code, reason=reply.reason, temporary=reply.temporary)
        )
        return False

    async def _send_award(self, owned: OwnedJob, award: Award, bid: Bid) -> AwardReply:
        node = bid.node
        if node == self.me:
            return self._award_here(award)
        started = time.perf_counter()
        try:
            reply: AwardReply = await self.bus.call(
                subjects.node(node, "award"), award, AwardReply, timeout_s=AWARD_TIMEOUT_S
            )
        except NoResponders:
            self.registry.drop(node, "does not answer")
            return Declined(node=node, code="gone", reason="the node is gone", temporary=True)
        except TimeoutError:
            self._stop_attempt(owned, node)
            return Declined(node=node, code="silent", reason="no answer to the award", temporary=True)
        except OutbidError as error:
            return Declined(node=node, code=error.code, reason=error.message)
        if bid.warm:  # starting a runner takes some milliseconds that are no round trip
            self.registry.note_rtt(node, time.perf_counter() - started)
        return reply

    def _accepted(self, owned: OwnedJob, considered: Considered, auction: Auction) -> None:
        bid = considered.bid
        auction.winner = bid.node
        if auction.able and auction.able[0] is not considered:
            auction.why = f"{considered.name} took it after {auction.able[0].name} refused"
        owned.state = "running"
        owned.promised_s = bid.finish_s
        owned.attempts.append(AttemptRecord(attempt=owned.number, node=bid.node, started_ms=now_ms()))
        self._tell(
            owned,
            Awarded(
                job=owned.job.id,
                node=bid.node,
                name=considered.name,
                attempt=owned.number,
                promised_s=bid.finish_s,
                why=auction.why,
            ),
        )

    def _conclude(self, owned: OwnedJob, winner: Considered, outcome: Outcome) -> Finished | None:
        """The result; None if the job goes on elsewhere. Raises what ended it otherwise."""
        node = winner.bid.node
        if isinstance(outcome, Done):
            owned.took_s = time.monotonic() - owned.awarded
            owned.timings = outcome.timings
            owned.close_attempt(None, "")
            return Finished(
                job=owned.job.id,
                node=node,
                name=winner.name,
                attempt=owned.number,
                result=outcome.result,
                chunks=outcome.chunks,
                timings=outcome.timings,
            )
        if isinstance(outcome, Stopped):
            owned.close_attempt(Cancelled(), "")
            if owned.cancelling:
                raise Cancelled
            outcome = Failed(error=AttemptFailed("the node stopped the attempt").body())
        error = from_body(outcome.error)
        owned.close_attempt(error, outcome.traceback)
        if not outcome.retry:
            raise error
        log.warning("%s failed: %s", owned.job.id, error, extra={"action": "attempt_failed", "node": node})
        owned.failed_on.add(node)
        owned.state, owned.node = "waiting", None
        more = len(owned.attempts) < self.max_attempts
        self._tell(
            owned, AttemptLost(job=owned.job.id, node=node, attempt=owned.number, error=outcome.error, retry=more)
        )
        if not more:
            raise self._exhausted(owned)
        return None

    def _tell(self, owned: OwnedJob, event: Event) -> None:
        owned.tell(event)
        if owned.watched:
            self.bus.post(subjects.job_event(owned.job.id), encode(event, Format.JSON))

    def _tell_end(self, owned: OwnedJob) -> None:
        """Watchers hear that and how it ended; the result itself is the caller's."""
        if not owned.watched:
            return
        end: Event = Ended(job=owned.job.id, error=(owned.error or Cancelled()).body())
        if owned.finished is not None:
            end = msgspec.structs.replace(owned.finished, result={})
        self.bus.post(subjects.job_event(owned.job.id), encode(end, Format.JSON))

    # -- helpers --------------------------------------------------------------------------------------------------

    def _node_changed(self, node: NodeId, what: str) -> None:
        if what in ("gone", "restarted"):
            for owned in list(self.running.values()):
                if owned.node == node and owned.awarded:
                    self._lose(owned, f"node {self.registry.name_of(node)} {what}")

    def _lose(self, owned: OwnedJob, why: str) -> None:
        if owned.outcome is not None and not owned.outcome.done():
            owned.outcome.set_result(Failed(error=NodeLost(why).body()))

    def _stop_attempt(self, owned: OwnedJob, node: NodeId) -> None:
        message = CancelAttempt(job=owned.job.id, attempt=owned.number)
        if node == self.me:
            self._cancel_here(message)
        else:
            self.bus.post(subjects.node(node, "cancel"), encode(message))

    def _abandon(self, owned: OwnedJob) -> None:
        """Whoever waited for the outcome gave up, so nobody would take it: stop the attempt."""
        if owned.outcome is not None and owned.node is not None:
            self._stop_attempt(owned, owned.node)

    def _retire(self, owned: OwnedJob) -> None:
        """Keep what `outbid why` shows; the prompt goes now, the result a little later."""
        owned.ended_ms = now_ms()
        owned.outcome = None
        self._tell_end(owned)
        owned.job = msgspec.structs.replace(owned.job, params={})
        self.running.pop(owned.job.id, None)
        if not self.running:
            self.busy.clear()
            self.idle.set()
        self.ended[owned.job.id] = owned
        while len(self.ended) > KEEP_ENDED:
            self.ended.popitem(last=False)

    def _exhausted(self, owned: OwnedJob) -> OutbidError:
        tried = [a for a in owned.attempts if a.error]
        reasons = "; ".join(f"{self.registry.name_of(a.node)}: {a.error.message}" for a in tried if a.error)
        if len(tried) == 1 and tried[0].error:
            return from_body(tried[0].error)
        return AttemptsExhausted(f"{len(tried)} attempts failed: {reasons}", attempts=len(tried))

    def _no_bid(self, owned: OwnedJob, auction: Auction) -> OutbidError:
        if owned.attempts:
            return self._exhausted(owned)
        job = owned.job
        reasons = _reasons(auction, self.registry)
        excluded = [f"{c.name}: {c.excluded}" for c in auction.ranked if c.excluded]
        if reasons or excluded:
            return NoBid(f"no bid for {job.capability}: {'; '.join([*excluded, *([reasons] if reasons else [])])}")
        if job.model is not None and (have := self._models(job.capability)):
            return UnknownModel(f"no node has model {job.model!r} for {job.capability}; there are: {', '.join(have)}")
        missing = [
            f"{peer.presence.name}: {peer.presence.missing[job.capability]}"
            for peer in self.registry
            if job.capability in peer.presence.missing
        ]
        return NoBid(f"no node can do {job.capability}: {'; '.join(missing) or 'none is known'}")

    def _models(self, capability: str) -> list[str]:
        offers = (offer for peer in self.registry for offer in peer.presence.offers)
        return sorted({offer.model for offer in offers if offer.capability == capability and offer.model})


def _reasons(auction: Auction, registry: Registry) -> str:
    return "; ".join(f"{registry.name_of(decline.node)}: {decline.reason}" for decline in auction.declines)


def _retrieve(task: asyncio.Task[Finished]) -> None:
    """Whoever waits for the job sees the error; with nobody waiting it is in the record, not in the log."""
    if not task.cancelled():
        task.exception()
