"""From an offer and a job's work to a bid: one formula for bidders, for owners that read standing offers, and for
simulations. Pure but for the bid's id and clock.
"""

from __future__ import annotations

import functools
import time

import msgspec

from outbid_contracts.ids import JobId, NodeId, new_bid_id
from outbid_contracts.messages import Bid, Offer, Work
from outbid_contracts.policy import Zone
from outbid_node.estimate import Estimate, estimate

BID_TTL_MS = 5_000
"""How long a bid stands; the award follows within milliseconds unless the owner is in trouble."""


def make_bid(
    node: NodeId, job: JobId, offer: Offer, work: Work, *, zone: Zone, why: str, standing: bool = False
) -> Bid:
    """For one of its free slots."""
    return bid_of(node, job, offer, estimate(offer, work), zone=zone, why=why, standing=standing)


def bid_of(
    node: NodeId, job: JobId, offer: Offer, numbers: Estimate, *, zone: Zone, why: str, standing: bool = False
) -> Bid:
    """With numbers that are known already."""
    return Bid(
        bid_id=new_bid_id(),
        node=node,
        job=job,
        expires_ms=time.time_ns() // 1_000_000 + BID_TTL_MS,
        start_s=0.0 if offer.warm else offer.load_s,
        finish_s=numbers.finish_s,
        finish_p90_s=numbers.finish_p90_s,
        energy_j=numbers.energy_j,
        cost_usd=numbers.cost_usd,
        warm=offer.warm,
        zone=zone,
        model=offer.model,
        standing=standing,
        why=why,
    )


def later_bid(
    node: NodeId, job: JobId, offer: Offer, work: Work, *, start_s: float, zone: Zone, standing: bool = False
) -> Bid:
    """For a slot that is expected to be free in `start_s`; by then its model is loaded, for another job used it."""
    then = msgspec.structs.replace(offer, free=1, warm=True)
    why = f"all {offer.slots} slots are taken, one is expected to be free in {start_s:.2g} s; {explain_offer(then)}"
    bid = make_bid(node, job, then, work, zone=zone, why=why, standing=standing)
    return msgspec.structs.replace(
        bid,
        later=True,
        start_s=start_s,
        finish_s=start_s + bid.finish_s,
        finish_p90_s=start_s * max(1.0, offer.spread) + bid.finish_p90_s,
    )


def with_held(bid: Bid, held: Work, work: Work) -> Bid:
    """The bid, whose numbers are those of less work than was asked, says so."""
    both = ((unit, min(amount, work[unit]), work[unit]) for unit, amount in held.items() if unit in work)
    told = ", ".join(f"{amount:.0f} of {asked:.0f} {unit}" for unit, amount, asked in both)
    return msgspec.structs.replace(bid, held=held, why=f"holds {told}; {bid.why}") if told else bid


def too_long(offer: Offer, work: Work) -> str:
    """Why such a job is too long for that node now, or nothing."""
    if offer.most_s is None or (finish_s := estimate(offer, work).finish_p90_s) <= offer.most_s:
        return ""
    return f"would take up to {finish_s:.3g} s, and it takes only jobs of {offer.most_s:.3g} s: {offer.most_why}"


def explain_offer(offer: Offer) -> str:
    load_s = None if offer.warm else offer.load_s
    return _explained(load_s, tuple(offer.rates.items()), offer.free, offer.slots, offer.rests_on)


@functools.lru_cache(maxsize=1024)
def _explained(load_s: float | None, rates: tuple[tuple[str, float], ...], free: int, slots: int, rests_on: str) -> str:
    """Cached: of a thousand short jobs most get the same offers."""
    state = "warm" if load_s is None else f"cold, loads in {load_s:.2g} s"
    speeds = ", ".join(f"{1 / rate:.3g} {unit}/s" for unit, rate in rates if rate > 0)
    return "; ".join(part for part in (state, speeds, f"{free} of {slots} slots free", f"from {rests_on}") if part)
