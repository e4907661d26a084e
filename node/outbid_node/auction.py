"""One auction: who could do this work, what do they promise, who is best for this caller.

Asking costs a round trip, so it is done where it can pay: a job that lasts a second is worth a millisecond of asking,
one that
lasts a millisecond is not. Then the standing offers that came with the heartbeats decide, and a refused award falls to
the next. Of many able nodes only the most promising few are asked, and short jobs look at a random few (power of k
choices; Mitzenmacher 2001), so that the cost of a job does not grow with the mesh.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec
from nats.aio.msg import Msg

from outbid_contracts import subjects
from outbid_contracts.codec import decode, encode
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Bid, CallForProposals, Considered, Decline, Job, Offer, Proposal
from outbid_node.alike import Alike, Seen
from outbid_node.auctioned import Auction
from outbid_node.bidding import bid_of, explain_offer, later_bid, too_long, with_held
from outbid_node.choosing import Want, choose, promising
from outbid_node.client import Bus, is_no_responders
from outbid_node.company import joining_j
from outbid_node.estimate import estimate, less
from outbid_node.places import Place, Places, with_free
from outbid_node.prefix import Holders
from outbid_node.ranking import Added, ordered, rank
from outbid_node.registry import Registry
from outbid_node.worker import Worker

log = logging.getLogger(__name__)

ASK_WORTH_S = 0.05
"""Jobs expected to take less than this are awarded from standing offers: asking (about 1 ms) would cost over 2 %."""

ASK_AT_MOST = 5
"""How many nodes are asked. Asking 50 loses bids under load; 3 sampled ones find a near-best node (measured)."""

ALIKE = 1.2
"""Offers whose scores differ by less are about as good: estimates are not better than that."""

ASK_BUSY = 2
"""Busy nodes that are asked beside them, if waiting for one may be better than any of those."""

CONSIDER = 8
"""Idle and busy nodes that are compared by their standing offers to find those that are asked."""

SAMPLE = 4
"""Standing offers a short job looks at, beside this node's own."""

MIN_WAIT_S, UNKNOWN_WAIT_S, MAX_WAIT_S = 0.05, 0.1, 1.0

WORTH = 0.05
"""A late answer is waited for longer, for this part of the seconds that its node would gain by its standing offer: a
busy machine may need a tenth of a second for an answer.
"""

LATE_S = 2.0
"""How long late answers are still read for their round trip."""


class Auctioneer:
    def __init__(self, *, me: NodeId, bus: Bus, registry: Registry, worker: Worker) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self.worker = worker
        self.stretch: Callable[[str, Bid], float] = lambda capability, bid: 1.0
        """By how much this owner lengthens what a node promises for such work."""
        self.holders = Holders()
        self._alike = Alike()

    async def hold(
        self, job: Job, attempt: int, want: Want, claimed: Collection[NodeId] = (), aim: NodeId | None = None
    ) -> Auction:
        """Hold one auction for `job`, as `want` says: among the nodes that it does not exclude, with what is left of
        its deadline. The slots of `claimed` are for others that are on their way there. With `aim` only for that node's
        slot or a better idle one.
        """
        started = time.perf_counter()
        auction = Auction(job.id, attempt, aim=aim)
        if want.thrifty:
            auction.added = self._added(job, want)
        if want.deadline is not None:
            job = msgspec.structs.replace(job, policy=want.policy_left(time.monotonic()))
        alone = self._standing(auction, job, want, claimed, aim)
        able = auction.able
        if len(able) == 1 and alone:
            auction.how = "only"
        elif able and able[0].bid.finish_s < ASK_WORTH_S:
            auction.how = "standing"
        elif able:
            await self._ask(auction, job, want)
        auction.took_ms = (time.perf_counter() - started) * 1000
        return auction

    def choice(self, auction: Auction, want: Want, target: NodeId | None = None) -> Considered | None:
        """The bid to award now, or the later one to wait for. A job that was let go for a slot of `target` takes one
        while that is there: whether waiting pays better was weighed with those before it in view, who are to have the
        slots that an auction of one job would wait for. Without that slot an auction that aimed at it decides nothing.
        """
        left = auction.ranked
        if auction.refused:
            left = [c for c in left if c.bid.later or c.bid.node not in auction.refused]
        elif left and not left[0].bid.later and not left[0].excluded and auction.aim is None:
            return left[0]
        if target is not None:
            able = [c for c in left if not c.bid.later and not c.excluded]
            if any(c.bid.node == target for c in able):
                return able[0]
        if auction.aim is not None:
            return None
        now = time.monotonic()
        return choose(left, want.policy_left(now), want.waited_s(now))

    def refused(self, auction: Auction, job: Job, decline: Decline) -> None:
        """A bid did not hold: its slot is another's now, and will be free again."""
        auction.refused.add(decline.node)
        auction.declines.append(decline)
        place = self.registry.places(job.capability, job.model).get(decline.node)
        if place is not None and place.free <= 0 and isinstance(bid := self._standing_proposal(job, place), Bid):
            auction.ranked += self._ranked(job, [bid], auction.added)

    def catch_up(self, auction: Auction, job: Job, want: Want) -> None:
        """Jobs that this owner awarded while it waited for answers crowd the nodes that they went to: the bids of these
        did not know of them.
        """
        places, crowded = self.registry.places(job.capability, job.model), dict[NodeId, tuple[Place, int]]()
        for node, given in auction.given.items():
            place = places.get(node)
            if place is not None and place.given > given:
                crowded[node] = (place, place.given - given)
                auction.given[node] = place.given
        if crowded:
            bids = [
                _beside(c.bid, job, *crowded[c.bid.node]) if c.bid.node in crowded else c.bid for c in auction.ranked
            ]
            policy = want.policy_left(time.monotonic())
            auction.ranked = self._ranked(msgspec.structs.replace(job, policy=policy), bids, auction.added)
            auction.judged(policy)

    # -- from standing offers -------------------------------------------------------------------------------------

    def _standing(
        self, auction: Auction, job: Job, want: Want, claimed: Collection[NodeId], aim: NodeId | None
    ) -> bool:
        """Rank what the nodes worth looking at promise by their offers. Whether there is only one such node at all."""
        places = self.registry.places(job.capability, job.model)
        place = places.get(aim) if aim is not None else None
        looked_at = self._sample(job, want, places) if place is None else _about(place, want, places)
        if job.prefix and len(looked_at) < len(places):
            looked_at = self._with_holder(job, want, places, looked_at)
        unclaimed = [place for place in looked_at if place.node not in claimed] if claimed else looked_at
        self._weigh(auction, job, want, unclaimed or looked_at)
        if len(looked_at) < len(places) and not auction.ranked:
            auction.declines.clear()
            self._weigh(auction, job, want, [place for place in places if place.node not in want.excluded])
        return len(looked_at) == 1

    def _weigh(self, auction: Auction, job: Job, want: Want, places: Iterable[Place]) -> None:
        seen, ranked = self._alike.seen(job, want), list[Considered]()
        for place in places:
            found = self._considered(job, place, want, seen, auction.added)
            if isinstance(found, Considered):
                ranked.append(found)
            else:
                auction.declines.append(found)
        auction.ranked = ordered(ranked, job.policy) if len(ranked) > 1 else ranked
        auction.judged(job.policy)

    def _considered(self, job: Job, place: Place, want: Want, seen: Seen, added: Added | None) -> Considered | Decline:
        mine = place.node == self.me
        offer = self._own_offer(job) if mine else place.offer
        free = offer.free if mine and offer is not None else place.free
        known = seen.find(place, offer, free) if offer is not None else None
        if known is not None and self.stretch(job.capability, known.bid) == known.stretch:
            return known
        proposal = self._standing_proposal(job, place, want)
        if isinstance(proposal, Decline):
            return proposal
        considered = self._ranked(job, [proposal], added)[0]
        if offer is not None and not proposal.later:
            seen.keep(place, offer, free, considered)
        return considered

    def _sample(self, job: Job, want: Want, places: Places) -> Sequence[Place]:
        """All of a few. Of many, for a short job to which all are equal this node and a random few, else the most
        promising.
        """
        if len(places) <= SAMPLE + 1:
            return [place for place in places if place.node not in want.excluded]
        some = next(iter(places))
        if not (job.policy.prefer or job.policy.avoid) and want.alone_s(some) < ASK_WORTH_S:
            mine = [place for place in (places.get(self.me),) if place is not None]
            others = [place for place in places if place.node != self.me and place.node not in want.excluded]
            return [*mine, *random.sample(others, min(SAMPLE, len(others)))]
        return promising(want, places, time.monotonic(), CONSIDER)

    def _with_holder(self, job: Job, want: Want, places: Places, looked_at: Sequence[Place]) -> Sequence[Place]:
        holder = self.holders.find(job.prefix)
        place = places.get(holder) if holder is not None and holder not in want.excluded else None
        return looked_at if place is None or place in looked_at else [*looked_at, place]

    def _standing_proposal(self, job: Job, place: Place, want: Want | None = None) -> Proposal:
        offer, node = place.offer, place.node
        if node == self.me:
            return self._own(job)
        if offer.blocked:
            return Decline(node=node, job=job.id, code="blocked", reason=offer.blocked, temporary=offer.waiting_helps)
        if reason := too_long(offer, job.work):
            return Decline(node=node, job=job.id, code="blocked", reason=reason, temporary=True)
        if place.free > 0:
            offer = with_free(offer, place.free)
            why = explain_offer(offer)
            if want is not None and want.work is job.work:
                numbers = want.numbers(place, max(0, offer.slots - place.free), offer.warm)
            else:
                numbers = estimate(offer, job.work)
            bid = bid_of(node, job.id, offer, numbers, zone=place.zone, why=why, standing=True)
            if want is not None and want.held and node in want.held:
                bid = with_held(bid, want.held[node], job.work)
            return _later(bid, place.way_s)
        if (start_s := place.frees_in(time.monotonic())) is not None:
            bid = later_bid(node, job.id, offer, job.work, start_s=start_s, zone=place.zone, standing=True)
            return _later(bid, place.way_s)
        reason = f"all {offer.slots} slots are taken"
        return Decline(node=node, job=job.id, code="busy", reason=reason, temporary=True)

    def _own_offer(self, job: Job) -> Offer | None:
        return self.worker.open_offer(job.capability, job.model, own=not job.durable)

    def _own(self, job: Job) -> Proposal:
        proposal = self.worker.propose(_cfp(job), zone="here")
        self._note(job, self.me, proposal)
        return proposal

    def _note(self, job: Job, node: NodeId, proposal: Proposal) -> None:
        """What an answer says about the node's slots."""
        if isinstance(proposal, Decline):
            self.registry.note_full(node, job.capability, job.model)
        elif proposal.later:
            self.registry.note_later(node, job.capability, job.model, proposal.start_s)

    # -- by asking ------------------------------------------------------------------------------------------------

    async def _ask(self, auction: Auction, job: Job, want: Want) -> None:
        """Replace the standing offers of the most promising nodes by their answers of this moment."""
        able = auction.able
        asked = [considered.bid.node for considered in _promising(able, job)]
        if self.me not in asked and any(considered.bid.node == self.me for considered in able):
            asked.append(self.me)  # which costs nothing, and keeps its own slot from idling if the others refuse
        later = [c for c in auction.ranked if c.bid.later and not c.excluded]
        asked += [c.bid.node for c in later if c.score < able[0].score][:ASK_BUSY]
        holder = self.holders.find(job.prefix) if job.prefix else None
        if holder is not None and holder not in asked and any(c.bid.node == holder for c in (*able, *later)):
            asked.append(holder)  # its standing offer does not know what it holds of this job
        remote = [node for node in asked if node != self.me]
        places = self.registry.places(job.capability, job.model)
        auction.given = {node: place.given for node in asked if (place := places.get(node)) is not None}
        proposals: list[Proposal] = [self._own(job)] if self.me in asked else []
        hopes = {c.bid.node: c.bid.finish_s for c in able if c.bid.node in asked}
        proposals += await self._collect(job, remote, auction.arrived_s, hopes)
        auction.asked = len(asked)
        answered = {proposal.node for proposal in proposals}
        auction.declines = [decline for decline in auction.declines if decline.node not in answered]
        proposals += [c.bid for c in later if c.bid.node not in answered][:ASK_AT_MOST]
        for bid in proposals if job.prefix else ():
            if isinstance(bid, Bid) and not bid.standing:
                want.hear(bid)
        self._rank(auction, job, proposals)

    async def _collect(
        self, job: Job, nodes: Sequence[NodeId], arrived_s: dict[NodeId, float], hopes: Mapping[NodeId, float]
    ) -> list[Proposal]:
        """Ask `nodes`, wait until all answered or the learned deadline passed; the silent are noted as late. When each
        answer came goes into `arrived_s`. `hopes`: in how many seconds nodes would be done, by their standing offers.

        Each is asked by name rather than all by one broadcast: a dead node then answers at once (no responders).
        """
        if not nodes:
            return []
        started = time.perf_counter()
        answers: dict[NodeId, Proposal] = {}
        complete = asyncio.Event()

        def take(node: NodeId, msg: Msg) -> None:
            answer = self._read_proposal(job, node, msg)
            if answer is not None and node not in answers:
                self._note(job, node, answer)
                arrived_s[node] = rtt_s = time.perf_counter() - started
                self.registry.note_rtt(node, rtt_s)
                answers[node] = _later(answer, rtt_s) if isinstance(answer, Bid) else answer
                if len(answers) == len(nodes):
                    complete.set()

        inboxes = {node: self.bus.open_inbox(functools.partial(take, node)) for node in nodes}
        data = encode(_cfp(job))
        for node, inbox in inboxes.items():
            self.bus.post(subjects.node(node, "cfp"), data, reply=inbox)
        try:
            if not await _is_set(complete, self._patience(nodes)):
                await _is_set(complete, _more_s(hopes, answers, self.me))
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
        auction.ranked = self._ranked(job, [p for p in proposals if isinstance(p, Bid)], auction.added)
        auction.declines += [p for p in proposals if isinstance(p, Decline)]
        auction.judged(job.policy)

    def _added(self, job: Job, want: Want) -> Added:
        """What the job adds to each node; where it was let go for one together with others, its share of that."""
        node, share_j = want.share_j or (None, 0.0)
        places, now = self.registry.places(job.capability, job.model), time.monotonic()
        return lambda bid: share_j if bid.node == node and not bid.later else joining_j(places, now, bid)

    def _ranked(self, job: Job, bids: Sequence[Bid], added: Added | None = None) -> list[Considered]:
        name_of = self.registry.name_of
        names: dict[str, str] = {bid.node: name_of(bid.node) for bid in bids}
        return rank(bids, job.policy, names, functools.partial(self.stretch, job.capability), added)


def _promising(able: Sequence[Considered], job: Job) -> Sequence[Considered]:
    """The best few; of many that are about as good a random few, else all owners would fight for the same."""
    alike = [considered for considered in able if considered.score <= ALIKE * able[0].score]
    if len(alike) <= ASK_AT_MOST or job.policy.prefer or job.policy.avoid:
        return able[:ASK_AT_MOST]
    return random.sample(alike, ASK_AT_MOST)


def _about(aim: Place, want: Want, places: Places) -> Sequence[Place]:
    """That place, and the idle ones that may be better by now."""
    others = promising(want, places, time.monotonic(), ASK_AT_MOST, later=False)
    return [aim, *(place for place in others if place is not aim)][:ASK_AT_MOST]


def _cfp(job: Job) -> CallForProposals:
    return CallForProposals(
        job=job.id,
        owner=job.owner,
        capability=job.capability,
        work=job.work,
        model=job.model,
        policy=job.policy,
        durable=job.durable,
        prefix=job.prefix,
    )


def _later(bid: Bid, seconds: float) -> Bid:
    """The bid as seen from here: the way there and back counts too."""
    return msgspec.structs.replace(
        bid, start_s=bid.start_s + seconds / 2, finish_s=bid.finish_s + seconds, finish_p90_s=bid.finish_p90_s + seconds
    )


def _beside(bid: Bid, job: Job, place: Place, more: int) -> Bid:
    """The bid with so many more jobs beside it, by what the standing offer says about crowding."""
    if bid.later:
        return bid
    offer = place.offer
    work = less(job.work, bid.held)
    then = estimate(with_free(offer, place.free), work)
    before = estimate(with_free(offer, min(offer.slots, place.free + more)), work)
    slower = then.finish_s / before.finish_s if before.finish_s > 0 else 1.0
    return msgspec.structs.replace(
        bid,
        finish_s=slower * bid.finish_s,
        finish_p90_s=slower * bid.finish_p90_s,
        energy_j=bid.energy_j * (then.energy_j / before.energy_j if before.energy_j > 0 else 1.0),
        cost_usd=bid.cost_usd * (then.cost_usd / before.cost_usd if before.cost_usd > 0 else 1.0),
    )


async def _is_set(event: asyncio.Event, within_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
    return event.is_set()


def _more_s(hopes: Mapping[NodeId, float], answers: Mapping[NodeId, Proposal], me: NodeId) -> float:
    """How much longer the late ones are worth waiting for."""
    known = [bid.finish_s for bid in answers.values() if isinstance(bid, Bid) and not bid.later]
    known += [hopes[me]] if me in hopes else []
    late = [finish_s for node, finish_s in hopes.items() if node not in answers and node != me]
    if not (known and late):
        return 0.0
    return min(MAX_WAIT_S, max(0.0, WORTH * (min(known) - min(late))))


def _late(job: Job, node: NodeId) -> Decline:
    return Decline(node=node, job=job.id, code="late", reason="did not answer in time", temporary=True)
