"""Finding the node that runs a job's next attempt: auction, award, the next-best where one refuses."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Collection

import msgspec

from outbid_contracts import subjects
from outbid_contracts.errors import OutbidError
from outbid_contracts.events import Event, Waiting
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import (
    Accepted,
    AttemptRecord,
    Award,
    AwardReply,
    Bid,
    Considered,
    Decline,
    Declined,
)
from outbid_contracts.policy import Policy
from outbid_node import reasons
from outbid_node.auction import ALIKE, Auctioneer
from outbid_node.auctioned import Auction
from outbid_node.checkpoints import Checkpoints, Saved, going_on, rest_of
from outbid_node.choosing import waits_for
from outbid_node.client import Bus, NoResponders
from outbid_node.owned import OwnedJob, now_ms
from outbid_node.places import FEW
from outbid_node.registry import Registry
from outbid_node.waiting import Ticket, WaitingRoom

AWARD_TIMEOUT_S = 1.0

SLOW_BYTES_S = 2**20
"""An award with a checkpoint has longer: poor Wi-Fi carries about so much."""


class Unplaced(Exception):
    """Nobody can do this durable job now; it waits for better times. For use between owner and recorder only."""


class Placer:
    def __init__(
        self,
        *,
        me: NodeId,
        bus: Bus,
        registry: Registry,
        auctioneer: Auctioneer,
        waiting: WaitingRoom,
        checkpoints: Checkpoints,
        max_attempts: int,
        award_here: Callable[[Award], AwardReply],
        stop_attempt: Callable[[OwnedJob, NodeId], None],
        tell: Callable[[OwnedJob, Event], None],
        tell_awarded: Callable[[OwnedJob], None],
    ) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self.auctioneer = auctioneer
        self.waiting = waiting
        self.checkpoints = checkpoints
        self.max_attempts = max_attempts
        self._award_here = award_here
        self._stop_attempt = stop_attempt
        self._tell = tell
        self._tell_awarded = tell_awarded
        self.on_auction: Callable[[OwnedJob, Auction], None] | None = None
        """Somebody wants to hear of every auction."""

    async def place(self, owned: OwnedJob) -> None:
        """Auction until some node holds the lease. Raises NoBid, UnknownModel or AttemptsExhausted; Unplaced for a
        durable job that nobody can do now.
        """
        job = owned.job
        ticket = owned.ticket or await self.waiting.enter(job, owned.tell, owned.want)
        owned.ticket = None
        try:
            for turn in itertools.count():
                if owned.tries >= self.most(owned):
                    raise reasons.exhausted(owned.attempts, self.registry)
                saved = await self.checkpoints.of(job, owned.attempts)
                auction = await self._auction(owned, ticket, saved)
                owned.auctions.append(auction)
                awarded = await self._award_best(owned, auction, ticket, saved)
                if self.on_auction is not None:
                    self.on_auction(owned, auction)
                if awarded:
                    return
                if not auction.waiting_may_help and auction.aim is None:
                    raise self._no_bid(owned, auction)
                owned.auctions.pop()
                await self._wait(owned, ticket, auction)
                # Room that is not there after all must not make this loop spin.
                await asyncio.sleep(min(0.25, 0.002 * turn))
        finally:
            self.waiting.leave(ticket)

    def most(self, owned: OwnedJob) -> int:
        return (owned.terms.max_attempts if owned.terms else None) or self.max_attempts

    async def _auction(self, owned: OwnedJob, ticket: Ticket, saved: Saved | None) -> Auction:
        """Without the nodes where an attempt failed, unless nobody else is left; the rest of a job by the model that
        began it, unless nobody has it.
        """
        hold, want, number = self.auctioneer.hold, ticket.want, owned.number + 1
        rest = owned.delivered.rest(owned.job) if owned.delivered else rest_of(owned.job, saved)
        claimed = self.waiting.claimed(ticket)
        aim = self._target(ticket) if saved is None and not want.thrifty else None
        auction = await hold(rest, number, want, claimed, aim)
        if owned.failed_on and not auction.able and not auction.waiting_may_help:
            auction = await hold(rest, number, want.without_exclusions())
        if rest.model != owned.job.model and not auction.able and not auction.waiting_may_help:
            auction = await hold(owned.job, number, want, claimed)
        if ticket.waited:
            auction.waited_s, auction.waited_for = owned.waited_s, ticket.reason
        if saved is not None:
            standing = self.registry.standing(owned.job.capability, saved.checkpoint.model)
            same = {s.node for s in standing if s.offer.device == saved.checkpoint.device}
            same_device_first(auction, owned.job.policy, same)
        return auction

    async def _award_best(self, owned: OwnedJob, auction: Auction, ticket: Ticket, saved: Saved | None) -> bool:
        """Award the best bid, then the next best, as long as that is better than waiting. False if nobody took it."""
        choice, target = self.auctioneer.choice, self._target(ticket)
        if auction.given:
            self.auctioneer.catch_up(auction, owned.job, ticket.want)
        while (best := choice(auction, ticket.want, target)) is not None and not best.bid.later:
            if await self._award(owned, best, auction, saved):
                return True
        return False

    def _target(self, ticket: Ticket) -> NodeId | None:
        """Whose slot it is to take. Of a few nodes an auction has the answers of all, newer than what the walk knew,
        and another one costs little: so there all is weighed again. Not for a thrifty job: an auction knows nothing of
        those that it was let go with.
        """
        return ticket.target if ticket.want.thrifty or len(self.registry.places(*ticket.key)) > FEW else None

    async def _wait(self, owned: OwnedJob, ticket: Ticket, auction: Auction) -> None:
        """Until its turn comes again."""
        want = ticket.want
        best = self.auctioneer.choice(auction, want)
        if best is not None and best.bid.later:
            ticket.wait = waits_for(best, auction.able, want)
        reason = ticket.reason or reasons.declines(auction, self.registry)
        self._tell(owned, Waiting(job=owned.job.id, reason=reason))
        await self.waiting.wait(ticket)

    async def _award(self, owned: OwnedJob, considered: Considered, auction: Auction, saved: Saved | None) -> bool:
        bid = considered.bid
        if self.registry.took_last(bid.node, owned.job.capability, bid.model, auction.opened):
            reason = "its slots went to other jobs meanwhile"
            decline = Decline(node=bid.node, job=owned.job.id, code="busy", reason=reason, temporary=True)
            self.auctioneer.refused(auction, owned.job, decline)
            return False
        owned.number = max(owned.number, owned.floor) + 1
        owned.outcome = asyncio.get_running_loop().create_future()
        owned.node, owned.name = bid.node, considered.name
        self.registry.take(bid.node, owned.job.capability, bid.model, considered.stretch * bid.finish_s)
        owned.awarded = time.monotonic()
        award = Award(job=owned.job, attempt=owned.number, bid_id=bid.bid_id)
        if owned.delivered is not None:
            rest = await owned.delivered.begin(owned.job, owned.number, bid, here=bid.node == self.me)
            award = msgspec.structs.replace(award, job=rest, chunks=owned.delivered.base)
        resumes = going_on(award, saved, bid.model) if saved else None
        owned.resumed, award = (saved, resumes) if resumes else (None, award)
        if owned.recorder is not None:
            owned.recorder.awarding(owned)
        reply = await self._send_award(owned, award, bid)
        if not isinstance(reply, Accepted) and owned.taken == owned.number:  # its answer was lost, its result was not
            reply = Accepted(node=bid.node, free=0)
        if isinstance(reply, Accepted):
            self._accepted(owned, considered, auction)
            self.registry.note_free(bid.node, owned.job.capability, bid.model, reply.free)
            return True
        owned.node = owned.outcome = None
        # Now, not once all have refused: by then the node may have said that it has room again.
        self.registry.note_full(bid.node, owned.job.capability, bid.model)
        decline = Decline(
            node=bid.node, job=owned.job.id, code=reply.code, reason=reply.reason, temporary=reply.temporary
        )
        self.auctioneer.refused(auction, owned.job, decline)
        return False

    async def _send_award(self, owned: OwnedJob, award: Award, bid: Bid) -> AwardReply:
        node = bid.node
        if node == self.me:
            return self._award_here(award)
        started = time.perf_counter()
        carried = len(award.checkpoint.data) if award.checkpoint else 0
        timeout_s = AWARD_TIMEOUT_S + carried / SLOW_BYTES_S
        try:
            reply: AwardReply = await self.bus.call(
                subjects.node(node, "award"), award, AwardReply, timeout_s=timeout_s
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
        if auction.ranked[0] is not considered:
            auction.why = _why_not_first(considered, auction) or auction.why
        owned.state = "running"
        owned.promised_s = bid.finish_s
        if owned.job.prefix:
            self.auctioneer.holders.note(owned.job.prefix, bid.node)
        owned.attempts.append(
            AttemptRecord(
                attempt=owned.number,
                node=bid.node,
                started_ms=now_ms(),
                step=owned.step,
                promised_s=bid.finish_s,
                promised_p90_s=bid.finish_p90_s,
            )
        )
        self._tell_awarded(owned)
        if owned.recorder is not None:
            owned.recorder.awarded(owned)

    def _no_bid(self, owned: OwnedJob, auction: Auction) -> Exception:
        why = reasons.no_bid(owned.job, auction, self.registry)
        if owned.recorder is not None:
            return Unplaced(why.message)
        return reasons.exhausted(owned.attempts, self.registry) if owned.attempts else why


def _why_not_first(winner: Considered, auction: Auction) -> str:
    """Why one that was not ranked first has the job."""
    if auction.able and auction.able[0] is not winner:
        return f"{winner.name} took it after {auction.able[0].name} refused"
    if auction.ranked[0].bid.later:
        return f"{winner.name} can begin now; waiting for {auction.ranked[0].name} would gain too little"
    return ""


def same_device_first(auction: Auction, policy: Policy, same: Collection[NodeId]) -> None:
    """Let one of `same` win if its bid is about as good as the best, because the same kind of device gives the same
    result; but not against the caller's wishes.
    """
    if not auction.able or policy.prefer or policy.avoid:
        return
    best = auction.able[0]
    first = next((c for c in auction.able if c.score <= ALIKE * best.score and c.bid.node in same), best)
    if first is not best:
        auction.ranked.remove(first)
        auction.ranked.insert(0, first)
        auction.why = f"{first.name} is about as good as {best.name}, and of the kind of device that the job began on"
