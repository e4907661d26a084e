"""Which bid is best for this caller: a pure function of bids and policy, in seconds-equivalents.

score = time + energy + money, each turned into seconds by the goal's exchange rates; lower is better. docs/policies.md
tries the rates on a Pi, a laptop, a gaming PC, a rented GPU and a cloud endpoint. Beside the score, in this order:

zone, cost       a bid that the policy rules out is never awarded
deadline         a bid whose p90 misses it comes behind all that keep it: the job would fail there
prefer, avoid    move a node before or behind all others, whatever it costs
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import floor, inf, log10
from typing import Protocol

import msgspec

from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Bid, Considered
from outbid_contracts.policy import LATE, Policy, Weights, Zone, weights_of

MIN_LEFT_S = 0.001

LEAST_S = 0.001
"""What a promise counts at least before it is stretched: any number times nothing is nothing."""

NO_PROMISE = "its numbers are no promise: each must be finite, and none below zero"

Names = Mapping[str, str] | Mapping[NodeId, str]

Stretch = Callable[[Bid], float]
"""By how much a node's promises run short: 1 or more."""

Added = Callable[[Bid], float | None]
"""Joules that count instead of a bid's own; None: its own."""


def score(bid: Bid, policy: Policy, stretch: float = 1.0, added_j: float | None = None) -> dict[str, float]:
    """The parts of a bid's score, in seconds-equivalents; only those that count. `stretch` lengthens its times, and its
    joules with them: they are watts times seconds. Its dollars may be a flat price. `added_j` counts instead of its
    joules, if given.
    """
    weights = weights_of(policy)
    finish_s, p90_s = times(bid, stretch)
    parts = {}
    if time := weights.p50 * finish_s + weights.p90 * p90_s:
        parts["time"] = time
    if energy := stretch * weights.per_j * (bid.energy_j if added_j is None else added_j):
        parts["energy"] = energy
    if money := weights.per_usd * bid.cost_usd:
        parts["money"] = money
    if policy.deadline_s is not None and p90_s > policy.deadline_s:
        parts["late"] = LATE * (p90_s - policy.deadline_s)
    return parts


def total(
    weights: Weights, deadline_s: float | None, finish_s: float, p90_s: float, energy_j: float, cost_usd: float
) -> float:
    """The sum of those parts from bare numbers, which are stretched already."""
    late_s = 0.0 if deadline_s is None or p90_s <= deadline_s else p90_s - deadline_s
    time = weights.p50 * finish_s + weights.p90 * p90_s
    return time + weights.per_j * energy_j + weights.per_usd * cost_usd + LATE * late_s


def times(bid: Bid, stretch: float) -> tuple[float, float]:
    """Median and p90 of its finish as they are ranked."""
    if stretch <= 1.0:
        return bid.finish_s, bid.finish_p90_s
    return stretch * max(LEAST_S, bid.finish_s), stretch * max(LEAST_S, bid.finish_p90_s)


class Priced(Protocol):
    """Where it would run, and for how much."""

    @property
    def zone(self) -> Zone: ...

    @property
    def cost_usd(self) -> float: ...


def exclusion(bid: Priced, policy: Policy) -> str:
    """Why the policy rules this bid out, or nothing."""
    if policy.goal == "private" and bid.zone not in ("here", "lan"):
        return f"policy private keeps the job on the local network; this node is in zone {bid.zone}"
    if policy.zone and bid.zone not in policy.zone and not (bid.zone == "here" and "lan" in policy.zone):
        return f"the policy's zone is {' or '.join(policy.zone)}; this node is in zone {bid.zone}"
    if policy.max_cost_usd is not None and bid.cost_usd > policy.max_cost_usd:
        return f"costs {bid.cost_usd:.6f} dollars; the limit is {policy.max_cost_usd:.6f}"
    return ""


def _is_promise(bid: Bid) -> bool:
    """Another node may send anything that the wire can carry. Nothing compares with NaN."""
    finish_s, p90_s, energy_j, cost_usd = bid.finish_s, bid.finish_p90_s, bid.energy_j, bid.cost_usd
    return 0.0 <= finish_s < inf and 0.0 <= p90_s < inf and 0.0 <= energy_j < inf and 0.0 <= cost_usd < inf


def remaining(policy: Policy, waited_s: float) -> Policy:
    """The policy of a job that was accepted so long ago: what is left of its deadline, at least a millisecond."""
    if policy.deadline_s is None or waited_s <= 0:
        return policy
    return msgspec.structs.replace(policy, deadline_s=max(MIN_LEFT_S, policy.deadline_s - waited_s))


def rank(
    bids: Iterable[Bid],
    policy: Policy,
    names: Names | None = None,
    stretch: Stretch | None = None,
    added: Added | None = None,
) -> list[Considered]:
    """All bids, best first, the excluded ones last. `policy.deadline_s` is what is left of it (see `remaining`). Ties
    go to the one that can begin now, then to the warm one, then by node id.
    """
    known: Names = names or {}
    considered = [
        _consider(bid, policy, known, stretch(bid) if stretch else 1.0, added(bid) if added else None) for bid in bids
    ]
    return ordered(considered, policy) if len(considered) > 1 else considered


def ordered(considered: Iterable[Considered], policy: Policy) -> list[Considered]:
    """Best first."""
    wished = bool(policy.prefer or policy.avoid)
    return sorted(considered, key=lambda c: _order(c, policy, wished))


def _consider(bid: Bid, policy: Policy, names: Names, stretch: float, added_j: float | None) -> Considered:
    name = names.get(bid.node, bid.node)
    if not _is_promise(bid):
        return Considered(bid=bid, name=name, score=0.0, excluded=NO_PROMISE)
    parts, excluded = score(bid, policy, stretch, added_j), exclusion(bid, policy)
    return Considered(
        bid=bid,
        name=name,
        score=sum(parts.values()),
        parts=parts,
        stretch=stretch,
        excluded=excluded,
        added_j=added_j,
    )


def _order(considered: Considered, policy: Policy, wished: bool) -> tuple[bool, bool, int, float, bool, bool, str]:
    bid = considered.bid
    tier = _tier(considered, policy) if wished else 1
    late = "late" in considered.parts
    return (considered.excluded != "", late, tier, considered.score, bid.later, not bid.warm, bid.node)


def _tier(considered: Considered, policy: Policy) -> int:
    node, name = considered.bid.node, considered.name
    if node in policy.prefer or name in policy.prefer:
        return 0
    return 2 if node in policy.avoid or name in policy.avoid else 1


def explain(ranked: list[Considered], policy: Policy) -> str:
    """One sentence: who is first and by what it beats the next."""
    if not ranked or ranked[0].excluded:
        return "no bid fits the policy"
    best = ranked[0]
    second = ranked[1] if len(ranked) > 1 and not ranked[1].excluded else None
    if "late" in best.parts:
        return f"{_nobody_in_time(best, second)}: it would be {_late(best):.3g} s late (p90)"
    if second is None:
        return f"{best.name} made the only bid that fits"
    if "late" in second.parts:
        return f"{best.name} is first because {second.name} would miss the deadline by {_late(second):.3g} s (p90)"
    if policy.prefer and _tier(best, policy) == 0:
        return f"{best.name} is preferred by the caller"
    if policy.avoid and _tier(second, policy) == 2 and _tier(best, policy) < 2:
        return f"{best.name} is first because the caller avoids {second.name}"
    return f"{best.name} is best for goal {policy.goal or 'balanced'}: {_difference(best, second)}"


def _late(considered: Considered) -> float:
    """Seconds past the deadline, by its p90 as it is ranked."""
    return considered.parts.get("late", 0.0) / LATE


def _nobody_in_time(best: Considered, second: Considered | None) -> str:
    if second is None:
        return f"{best.name} made the only bid that fits, though it may miss the deadline"
    return f"no bid keeps the deadline, {best.name} is first of those that miss it"


def _difference(best: Considered, second: Considered) -> str:
    a, b = best.bid, second.bid
    facts = [f"{times(a, best.stretch)[0]:.3g} s against {times(b, second.stretch)[0]:.3g} s"]
    if a.energy_j or b.energy_j:
        facts.append(f"{_joules(ranked_j(best))} against {_joules(ranked_j(second))}")
    if a.cost_usd or b.cost_usd:
        facts.append(f"{_dollars(a.cost_usd)} against {_dollars(b.cost_usd)}")
    if held := _held(a, b):
        facts.append(held)
    if a.warm != b.warm:
        facts.append("warm against cold" if a.warm else "cold against warm")
    return f"{', '.join(facts)} for {second.name}"


def _held(a: Bid, b: Bid) -> str:
    """What their nodes need not do of the job, where that differs."""
    both = [(unit, *(f"{bid.held.get(unit, 0.0):.0f}" for bid in (a, b))) for unit in {**a.held, **b.held}]
    return ", ".join(f"holds {mine} {unit} of it against {other}" for unit, mine, other in both if mine != other)


def ranked_j(considered: Considered) -> float:
    """Its joules as they were ranked."""
    joules = considered.bid.energy_j if considered.added_j is None else considered.added_j
    return considered.stretch * joules


def _joules(value: float) -> str:
    return f"{value:.3g} J" if value < 1000 else f"{value:,.0f} J"


def _dollars(value: float) -> str:
    """Two digits that count, without an exponent."""
    return f"${value:.2g}" if value >= 1e-4 or not value else f"${value:.{min(15, 1 - floor(log10(value)))}f}"
