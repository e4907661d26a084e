"""From a standing offer and a job's work to the numbers of a bid: one pure formula for bidders, owners and simulations.

Where an offer's rates come from is told in `estimating`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from outbid_contracts.messages import Offer, Work

JOULES_PER_KWH = 3.6e6

MOST_S = 1e9
"""Absurd offers and absurd work (a peer may send anything) are promised so long, instead of an infinite time."""


class Estimate(NamedTuple):
    """Seconds from now, joules and dollars for the whole job. Finite and not negative; p90 is not below the median."""

    finish_s: float
    finish_p90_s: float
    energy_j: float
    cost_usd: float


def estimate(offer: Offer, work: Work) -> Estimate:
    """What a standing offer promises for this work. A unit without a known rate counts as free. Joules and dollars are
    those of the seconds that it takes, shared with the jobs that run beside it, as the meter shares them.
    """
    running = max(0, offer.slots - offer.free)
    crowd = 1.0 + offer.crowding * running
    load_s = 0.0 if offer.warm else offer.load_s
    finish_s = _bounded((offer.fixed_s + _sum(work, offer, 0)) * crowd + load_s)
    spread = max(1.0, offer.spread)
    if offer.typical or offer.typical_from:
        long_s = _bounded((offer.fixed_s + _sum(work, offer, 1)) * crowd + load_s)
        spread = together(spread, long_s / finish_s if finish_s > 0 else 1.0)
    return Estimate(
        finish_s=finish_s,
        finish_p90_s=max(finish_s, _bounded(finish_s * spread)),
        energy_j=_bounded(offer.watts * finish_s / (running + 1), math.inf),
        cost_usd=_bounded(offer.usd_per_s * finish_s / (running + 1), math.inf),
    )


def less(work: Work, held: Work) -> Work:
    """What is left of the work without what need not be done."""
    return {unit: max(0.0, amount - held.get(unit, 0.0)) for unit, amount in work.items()} if held else work


def together(spread: float, other: float) -> float:
    """p90 over median of a product of two independent factors, each with its own; exact where both are lognormal."""
    if other <= 1.0:
        return spread
    return math.exp(math.hypot(math.log(spread), math.log(other)))


def _sum(work: Work, offer: Offer, which: int) -> float:
    """Seconds for all units; of those that are only upper bounds the usual amount (`which`: 0 median, 1 p90)."""
    seconds, rates = 0.0, offer.rates
    for unit, amount in work.items():
        rate = rates.get(unit)
        if rate is None:
            continue
        if steps := offer.typical_from.get(unit):
            amount = min(amount, _step(steps, amount)[1 + which])
        elif unit in offer.typical:
            amount = min(amount, offer.typical[unit][which])
        seconds += amount * rate
    return seconds


def _step(steps: Sequence[tuple[float, float, float]], amount: float) -> tuple[float, float, float]:
    """The last that begins at or below the amount; the first, if none does."""
    found = steps[0]
    for step in steps:
        if step[0] <= amount:
            found = step
    return found


def _bounded(number: float, most: float = MOST_S) -> float:
    """Between 0 and `most`; what is no number counts as the worst."""
    if 0.0 <= number < most:
        return number
    return 0.0 if number < 0 else min(most, 1e300)


def energy_price(joules: float, usd_per_kwh: float) -> float:
    return joules / JOULES_PER_KWH * usd_per_kwh
