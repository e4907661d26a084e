"""Which bid is best for this caller: a pure function of bids and policy, in seconds-equivalents.

score = time + energy + money, each turned into seconds by the goal's exchange rates. Lower is better. A bid may be
ruled out (zone, cost); `prefer` and `avoid` move a node before or behind all others, whatever it costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from outbid_contracts.messages import Bid, Considered
from outbid_contracts.policy import Goal, Policy, Weights

WEIGHTS: Mapping[Goal, Weights] = {
    "fastest": Weights(p50=1.0, p90=0.0, per_j=0.0, per_usd=0.0),
    # a second is worth a kilojoule (about 0.0001 dollars of power) and a cent of rent
    "balanced": Weights(p50=0.7, p90=0.3, per_j=0.001, per_usd=100.0),
    "green": Weights(p50=0.02, p90=0.0, per_j=0.1, per_usd=0.0),
    "cheap": Weights(p50=0.02, p90=0.0, per_j=0.0001, per_usd=100_000.0),
    "private": Weights(p50=0.7, p90=0.3, per_j=0.001, per_usd=100.0),
    "custom": Weights(),
}

LATE = 10.0
"""A second past the deadline counts this many times."""


def score(bid: Bid, policy: Policy) -> dict[str, float]:
    """The parts of a bid's score, in seconds-equivalents; only those that count."""
    weights = policy.weights or WEIGHTS[policy.goal]
    parts = {
        "time": weights.p50 * bid.finish_s + weights.p90 * bid.finish_p90_s,
        "energy": weights.per_j * bid.energy_j,
        "money": weights.per_usd * bid.cost_usd,
    }
    if policy.deadline_s is not None:
        parts["late"] = LATE * max(0.0, bid.finish_p90_s - policy.deadline_s)
    return {name: value for name, value in parts.items() if value}


def exclusion(bid: Bid, policy: Policy) -> str:
    """Why the policy rules this bid out, or nothing."""
    if policy.goal == "private" and bid.zone not in ("here", "lan"):
        return f"policy private keeps the job on the local network; this node is in zone {bid.zone}"
    if policy.max_cost_usd is not None and bid.cost_usd > policy.max_cost_usd:
        return f"costs {bid.cost_usd:.6f} dollars; the limit is {policy.max_cost_usd:.6f}"
    return ""


def rank(bids: Iterable[Bid], policy: Policy, names: Mapping[str, str] | None = None) -> list[Considered]:
    """All bids, best first, the excluded ones last. Ties go to the warm one, then by node id."""
    considered = [_consider(bid, policy, names or {}) for bid in bids]
    return sorted(considered, key=lambda c: (bool(c.excluded), _tier(c, policy), c.score, not c.bid.warm, c.bid.node))


def _consider(bid: Bid, policy: Policy, names: Mapping[str, str]) -> Considered:
    parts = score(bid, policy)
    return Considered(
        bid=bid,
        name=names.get(bid.node, bid.node),
        score=sum(parts.values()),
        parts=parts,
        excluded=exclusion(bid, policy),
    )


def _tier(considered: Considered, policy: Policy) -> int:
    who = {considered.bid.node, considered.name}
    if who & set(policy.prefer):
        return 0
    return 2 if who & set(policy.avoid) else 1


def explain(ranked: list[Considered], policy: Policy) -> str:
    """One sentence: who is first and by what it beats the next."""
    able = [c for c in ranked if not c.excluded]
    if not able:
        return "no bid fits the policy"
    best = able[0]
    if _tier(best, policy) == 0:
        return f"{best.name} is preferred by the caller"
    if len(able) == 1:
        return f"{best.name} made the only bid that fits"
    second = able[1]
    if _tier(second, policy) == 2 and _tier(best, policy) < 2:
        return f"{best.name} is first because the caller avoids {second.name}"
    return f"{best.name} is best for goal {policy.goal}: {_difference(best, second)}"


def _difference(best: Considered, second: Considered) -> str:
    a, b = best.bid, second.bid
    facts = [f"{a.finish_s:.3g} s against {b.finish_s:.3g} s"]
    if a.energy_j or b.energy_j:
        facts.append(f"{a.energy_j:.3g} J against {b.energy_j:.3g} J")
    if a.cost_usd or b.cost_usd:
        facts.append(f"${a.cost_usd:.2g} against ${b.cost_usd:.2g}")
    if a.warm != b.warm:
        facts.append("warm against cold" if a.warm else "cold against warm")
    return f"{', '.join(facts)} for {second.name}"
