"""How much of a work unit is really needed where a request only bounds it: the tokens of an answer.

A run that reached its bound would have needed more, nobody knows how much: it is censored. The distribution of what is
needed is estimated after Kaplan and Meier (1958), and what a job with a bound takes is the lesser of both, quantile by
quantile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from outbid_node.estimating.run import LEAST, MOST, Run

HALF_LIFE_RUNS = 32.0

ENDLESS_RUNS = 1.0
"""One thought run that never ends: after three runs nothing is known yet about the longest of ten."""


ENOUGH = 8
"""So many runs with about the same bound say how long answers under that bound are."""

Steps = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, slots=True)
class Length:
    """`open`: its bound ended it, which was `asked`."""

    amount: float
    open: bool
    weight: float = 1.0
    asked: float = 0.0


def lengths(runs: Sequence[Run], unit: str) -> list[Length]:
    """What the runs (the newest last) needed of that unit. Runners count tokens after the first, so one more or less
    makes no difference.
    """
    found = []
    for age, run in enumerate(reversed(runs)):
        asked, done = run.work.get(unit, 0.0), run.measured.get(unit, (0.0, 0.0))[0]
        if not run.part and LEAST <= done <= MOST and asked <= MOST:
            found.append(Length(done, done + 1 >= asked, 0.5 ** (age / HALF_LIFE_RUNS), asked))
    return found


def needed(seen: Sequence[Length], share: float) -> float:
    """The amount that suffices for this share of jobs; MOST if so many were never seen to end."""
    at_risk = ENDLESS_RUNS + sum(length.weight for length in seen)
    going_on = 1.0
    for length in sorted(seen, key=lambda length: (length.amount, length.open)):
        if not length.open:
            going_on *= 1.0 - length.weight / at_risk
            if going_on <= 1.0 - share + 1e-9:
                return length.amount
        at_risk -= length.weight
    return MOST


def steps(seen: Sequence[Length]) -> Steps:
    """From which bound on which median and p90 hold, where ENOUGH runs had a bound next to the same power of two; empty
    if that is so for less than two of them. Where most answers were cut off, those under the next higher bound
    tell. They only grow, so that more never counts as less.
    """
    classes: dict[int, list[Length]] = {}
    for length in seen:
        if length.asked > 0:
            classes.setdefault(round(math.log2(length.asked)), []).append(length)
    known = sorted(power for power, some in classes.items() if len(some) >= ENOUGH)
    if len(known) < 2:
        return ()
    least = [2.0 ** (power - 0.5) for power in known]
    usual, long = ([needed(classes[power], share) for power in known] for share in (0.5, 0.9))
    return tuple(zip(least, _growing(least, usual), _growing(least, long), strict=True))


def _growing(least: Sequence[float], amounts: Sequence[float]) -> list[float]:
    found = list(amounts)
    for n in reversed(range(len(found) - 1)):
        if found[n] >= MOST:
            found[n] = found[n + 1]
    for n in range(1, len(found)):
        found[n] = max(found[n], min(found[n - 1], least[n]))
    return found
