"""One auction: who could do this work, what do they promise, who is best for this caller.

Asking costs a round trip, so it is done where it can pay: a job that lasts a second is worth a millisecond of asking,
one that
lasts a millisecond is not. Then the standing offers that came with the heartbeats decide, and a refused award falls to
the next. Of many able nodes only the most promising few are asked, and short jobs look at a random few (power of k
choices; Mitzenmacher 2001), so that the cost of a job does not grow with the mesh.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import msgspec
from nats.aio.msg import Msg

from outbid_contracts import subjects
from outbid_contracts.codec import decode, encode
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Bid, BidSheet, CallForProposals, Considered, Decline, Job, Proposal
from outbid_node.client import Bus, is_no_responders
from outbid_node.ranking import explain, rank
from outbid_node.registry import Registry, Standing
from outbid_node.worker import Worker, explain_offer, make_bid, too_long

log = logging.getLogger(__name__)

ASK_WORTH_S = 0.05
"""Jobs expected to take less than this are awarded from standing offers: asking (about 1 ms) would cost over 2 %."""

ASK_AT_MOST = 5
"""How many nodes are asked. Asking 50 loses bids under load; 3 sampled ones find a near-best node (measured)."""

ALIKE = 1.2
"""Offers whose scores differ by less are about as good: estimates are not better than that."""

SAMPLE = 4
"""Standing offers a short job looks at, beside this node's own."""

MIN_WAIT_S, UNKNOWN_WAIT_S, MAX_WAIT_S = 0.05, 0.1, 1.0

LATE_S = 2.0
"""How long late answers are still read for their round trip."""


@dataclass
class Auction:
    """The outcome: bids ranked, best first (excluded ones last), and the declines."""

    attempt: int
    how: str = "asked"
    opened_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    opened: float = field(default_factory=time.monotonic)
    took_ms: float = 0.0
    asked: int = 0
    ranked: list[Considered] = field(default_factory=list)
    declines: list[Decline] = field(default_factory=list)
    winner: NodeId | None = None
    why: str = ""

    @property
    def able(self) -> list[Considered]:
        return [considered for considered in self.ranked if not considered.excluded]

    @property
    def waiting_may_help(self) -> bool:
        return any(decline.temporary for decline in self.declines)

    def sheet(self) -> BidSheet:
        return BidSheet(
            attempt=self.attempt,
            how=self.how,  # type: ignore[arg-type]
            opened_ms=self.opened_ms,
            took_ms=self.took_ms,
            asked=self.asked,
            bids=tuple(self.ranked),
            declines=tuple(self.declines),
            winner=self.winner,
            why=self.why,
        )


class Auctioneer:
    def __init__(self, *, me: NodeId, bus: Bus, registry: Registry, worker: Worker) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self.worker = worker

    async def hold(self, job: Job, attempt: int, excluded: Collection[NodeId]) -> Auction:
        """Hold one auction for `job` among the nodes not in `excluded`."""
        started = time.perf_counter()
        auction = Auction(attempt)
        standing = [s for s in self.registry.standing(job.capability, job.model) if s.node not in excluded]
        proposals = self._standing_proposals(job, standing)
        self._rank(auction, job, proposals)
        able = auction.able
        if len(able) == 1 and len(proposals) == 1:
            auction.how = "only"
        elif able and able[0].bid.finish_s < ASK_WORTH_S:
            auction.how = "standing"
        elif able:
            await self._ask(auction, job, standing)
        auction.took_ms = (time.perf_counter() - started) * 1000
        return auction

    # -- from standing offers -------------------------------------------------------------------------------------

    def _standing_proposals(self, job: Job, standing: Sequence[Standing]) -> list[Proposal]:
        looked_at = self._sample(job, standing)
        proposals = [self._standing_proposal(job, s) for s in looked_at]
        if len(looked_at) < len(standing) and not any(isinstance(p, Bid) for p in proposals):
            proposals = [self._standing_proposal(job, s) for s in standing]
        return proposals

    def _sample(self, job: Job, standing: Sequence[Standing]) -> Sequence[Standing]:
        """All of them, but for a short job to which all are equal, on a large mesh, this node and a random few."""
        if len(standing) <= SAMPLE + 1 or job.policy.prefer or job.policy.avoid:
            return standing
        quick = make_bid(self.me, job.id, standing[0].offer, job.work, zone="lan", why="")
        if quick.finish_s >= ASK_WORTH_S:
            return standing
        mine = [s for s in standing if s.node == self.me]
        return mine + random.sample([s for s in standing if s.node != self.me], SAMPLE)

    def _standing_proposal(self, job: Job, standing: Standing) -> Proposal:
        offer, node = standing.offer, standing.node
        if node == self.me:
            return self._own(job)
        if offer.blocked:
            return Decline(node=node, job=job.id, code="blocked", reason=offer.blocked, temporary=offer.waiting_helps)
        if standing.free <= 0:
            reason = f"all {offer.slots} slots are taken"
            return Decline(node=node, job=job.id, code="busy", reason=reason, temporary=True)
        offer = msgspec.structs.replace(offer, free=standing.free)
        zone = standing.presence.zone
        if reason := too_long(offer, job.work):
            return Decline(node=node, job=job.id, code="blocked", reason=reason, temporary=True)
        bid = make_bid(node, job.id, offer, job.work, zone=zone, why=explain_offer(offer), standing=True)
        return _later(bid, standing.rtt_s)

    def _own(self, job: Job) -> Proposal:
        proposal = self.worker.propose(_cfp(job))
        if isinstance(proposal, Decline):
            self.registry.note_full(self.me, job.capability, job.model)
        return msgspec.structs.replace(proposal, zone="here") if isinstance(proposal, Bid) else proposal

    # -- by asking ------------------------------------------------------------------------------------------------

    async def _ask(self, auction: Auction, job: Job, standing: Sequence[Standing]) -> None:
        """Replace the standing offers of the most promising nodes by their answers of this moment."""
        promising = [considered.bid.node for considered in _promising(auction.able, job)]
        if self.me not in promising and any(considered.bid.node == self.me for considered in auction.able):
            promising.append(self.me)  # which costs nothing, and keeps its own slot from idling if the others refuse
        remote = [node for node in promising if node != self.me]
        proposals: list[Proposal] = [self._own(job)] if self.me in promising else []
        proposals += await self._collect(job, remote)
        auction.asked = len(promising)
        asked = {proposal.node for proposal in proposals}
        auction.declines = [decline for decline in auction.declines if decline.node not in asked]
        self._rank(auction, job, proposals)

    async def _collect(self, job: Job, nodes: Sequence[NodeId]) -> list[Proposal]:
        """Ask `nodes`, wait until all answered or the learned deadline passed; the silent are noted as late.

        Each is asked by name rather than all by one broadcast: a dead node then answers at once (no responders).
        """
        if not nodes:
            return []
        started = time.perf_counter()
        answers: dict[NodeId, Proposal] = {}
        complete = asyncio.Event()

        def take(node: NodeId, msg: Msg) -> None:
            answer = self._read_proposal(job, node, msg)
            if isinstance(answer, Decline):
                self.registry.note_full(node, job.capability, job.model)
            if answer is not None and node not in answers:
                rtt_s = time.perf_counter() - started
                self.registry.note_rtt(node, rtt_s)
                answers[node] = _later(answer, rtt_s) if isinstance(answer, Bid) else answer
                if len(answers) == len(nodes):
                    complete.set()

        inboxes = {node: self.bus.open_inbox(functools.partial(take, node)) for node in nodes}
        data = encode(_cfp(job))
        for node, inbox in inboxes.items():
            self.bus.post(subjects.node(node, "cfp"), data, reply=inbox)
        try:
            async with asyncio.timeout(self._patience(nodes)):
                await complete.wait()
        except TimeoutError:
            log.debug("not all bids came in time", extra={"action": "auction_closed_early"})
        finally:
            # A late answer comes too late for this job, but tells how far away its node is.
            asyncio.get_running_loop().call_later(LATE_S, self._close, list(inboxes.values()))
        late = [node for node in nodes if node not in answers]
        for node in late:
            self.registry.note_full(node, job.capability, job.model)
        return [*answers.values(), *(_late(job, node) for node in late)]

    def _close(self, inboxes: Sequence[str]) -> None:
        for inbox in inboxes:
            self.bus.close_inbox(inbox)

    def _patience(self, nodes: Sequence[NodeId]) -> float:
        """Seconds to wait for bids: four usual round trips to the slowest, at least 50 ms; 100 if one is unknown."""
        peers = [self.registry.get(node) for node in nodes]
        known = [UNKNOWN_WAIT_S if peer.rtt_s is None else 4 * peer.rtt_s for peer in peers if peer]
        return min(MAX_WAIT_S, max([MIN_WAIT_S, *known]))

    def _read_proposal(self, job: Job, node: NodeId, msg: Msg) -> Proposal | None:
        if is_no_responders(msg):
            self.registry.drop(node, "does not answer")
            return Decline(node=node, job=job.id, code="gone", reason="the node is gone", temporary=True)
        try:
            proposal: Proposal = decode(msg.data, Proposal)
        except OutbidError as error:
            log.warning("unreadable bid: %s", error, extra={"action": "bid_unreadable"})
            return None
        return proposal if (proposal.job, proposal.node) == (job.id, node) else None

    def _rank(self, auction: Auction, job: Job, proposals: Sequence[Proposal]) -> None:
        auction.ranked = rank((p for p in proposals if isinstance(p, Bid)), job.policy, self.registry.names())
        auction.declines += [p for p in proposals if isinstance(p, Decline)]
        auction.why = explain(auction.ranked, job.policy) if auction.ranked else ""


def _promising(able: Sequence[Considered], job: Job) -> Sequence[Considered]:
    """The best few; of many that are about as good a random few, else all owners would fight for the same."""
    alike = [considered for considered in able if considered.score <= ALIKE * able[0].score]
    if len(alike) <= ASK_AT_MOST or job.policy.prefer or job.policy.avoid:
        return able[:ASK_AT_MOST]
    return random.sample(alike, ASK_AT_MOST)


def _cfp(job: Job) -> CallForProposals:
    return CallForProposals(
        job=job.id,
        owner=job.owner,
        capability=job.capability,
        work=job.work,
        model=job.model,
        policy=job.policy,
    )


def _later(bid: Bid, seconds: float) -> Bid:
    """The bid as seen from here: the way there and back counts too."""
    return msgspec.structs.replace(
        bid, start_s=bid.start_s + seconds / 2, finish_s=bid.finish_s + seconds, finish_p90_s=bid.finish_p90_s + seconds
    )


def _late(job: Job, node: NodeId) -> Decline:
    return Decline(node=node, job=job.id, code="late", reason="did not answer in time", temporary=True)
