"""Robust regression of a run's time on its work: pure, over a short window of runs, the newest first in weight.

The model is that of a bid: seconds = (fixed + sum(amount x rate)) x (1 + crowding x beside). Each run gives a row for
its whole time, and one for each unit whose seconds its runner measured. Rows are weighted by age, by the noise to be
expected and, against outliers (a game started, the machine swapped), after Huber (1964); the prior is one more row for
each coefficient, so that the solution is that of a Bayesian linear regression. None is ever negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outbid_node.estimating.linear import non_negative
from outbid_node.estimating.quantiles import median, quantile
from outbid_node.estimating.run import MOST, MOST_UNITS, Run

HALF_LIFE_RUNS = 6.0
"""The weight of a run is halved by so many newer ones: a new driver's speed is believed after some ten runs."""

HALF_LIFE_S = 14 * 86400.0
"""And by so much time between it and the newest."""

NOISE, NOISE_S = 0.15, 0.0002
"""What the whole time of equal runs differs by: a share of it, and a little more of the shortest."""

PART_NOISE, OF_WHOLE = 0.2, 0.1
"""The seconds of one unit are off by a share of their own and one of the whole run: what counts as the reading of ten
tokens is mostly something else.
"""

SMALL = 0.1
"""However little a coefficient is thought to be, it may turn out to be this share of what it could be at most."""

PASSES = 5
FIRST_PASSES = 2
"""In which outliers still pull a little, so that it does not matter much where the search begins."""

HUBER = 1.5
"""Residuals beyond so many times the usual one count less than by their square; in the end hardly at all."""

USUAL_SPREAD, USUAL_WEIGHT = 2.0, 0.5
"""p90 over median before anything ran here; with few runs it remains one of the ratios looked at."""

MOST_SPREAD, MOST_CROWDING = 10.0, 2.0

PRIOR_CROWDING_RUNS = 3.0
"""So many runs with others beside them weigh as much as the prior's crowding."""


@dataclass(frozen=True, slots=True)
class Belief:
    """The coefficients before the runs of a fit, each taken for right within a share `vague` of it."""

    fixed_s: float
    rates: Mapping[str, float]
    crowding: float
    vague: float


@dataclass(frozen=True, slots=True)
class Fit:
    """`spread`: p90 of the actual times over the predicted ones."""

    fixed_s: float
    rates: dict[str, float]
    crowding: float
    spread: float


@dataclass(frozen=True, slots=True)
class _Row:
    """seconds = sum(amount x coefficient), by the coefficients' numbers; number 0 is the fixed time.

    `noise_s` and `noise`: its standard deviation in seconds, and what is added to that as a share of what is predicted.
    """

    amounts: tuple[tuple[int, float], ...]
    seconds: float
    weight: float
    noise_s: float
    noise: float
    whole: bool

    def said(self, coefficients: Sequence[float]) -> float:
        return sum(amount * coefficients[n] for n, amount in self.amounts)


def fit(runs: Sequence[Run], belief: Belief, at_most: tuple[str, ...] = ()) -> Fit:
    """`runs` from the oldest to the newest. Without any the belief comes back."""
    weights = _recency(runs)
    units = _units(runs, belief)
    start = [max(0.0, belief.fixed_s), *(max(0.0, belief.rates.get(unit, 0.0)) for unit in units)]
    rows = _rows(runs, weights, units, at_most, belief.crowding)
    found = _solve(rows, start, belief.vague)
    crowding = _crowding(runs, weights, units, at_most, found, belief.crowding)
    if abs(crowding - belief.crowding) > 0.01:
        rows = _rows(runs, weights, units, at_most, crowding)
        found = _solve(rows, start, belief.vague)
    ratios = [(row.seconds / said, row.weight) for row in rows if row.whole and (said := row.said(found)) > 0]
    middle = min(2.0, max(0.5, median([*ratios, (1.0, 1.0)])))
    spread = quantile([*((ratio / middle, weight) for ratio, weight in ratios), (USUAL_SPREAD, USUAL_WEIGHT)], 0.9)
    found = [min(MOST, coefficient * middle) for coefficient in found]
    return Fit(
        fixed_s=found[0],
        rates=dict(zip(units, found[1:], strict=True)),
        crowding=crowding,
        spread=min(MOST_SPREAD, max(1.0, spread)),
    )


def _units(runs: Sequence[Run], belief: Belief) -> list[str]:
    """Those believed in and those of the runs, the newest first."""
    seen = dict.fromkeys(unit for run in reversed(runs) for unit in (*run.work, *run.measured))
    return list(dict.fromkeys([*belief.rates, *list(seen)[:MOST_UNITS]]))


def _recency(runs: Sequence[Run]) -> list[float]:
    """A weight for each run: newer ones after it and the time since then make it lighter."""
    newest = max((run.at_s for run in runs), default=0.0)
    return [
        0.5 ** ((len(runs) - 1 - n) / HALF_LIFE_RUNS + min(200.0, (newest - run.at_s) / HALF_LIFE_S))
        for n, run in enumerate(runs)
    ]


def _rows(
    runs: Sequence[Run], weights: Sequence[float], units: Sequence[str], at_most: tuple[str, ...], crowding: float
) -> list[_Row]:
    number = {unit: n for n, unit in enumerate(units, 1)}
    rows: list[_Row] = []
    for run, weight in zip(runs, weights, strict=True):
        crowd = 1.0 + crowding * run.beside
        amounts = run.amounts(at_most)
        if (whole_s := run.whole_s()) is not None:
            named = tuple((number[unit], amount) for unit, amount in amounts.items() if unit in number)
            rows.append(_Row(((0, 1.0), *named), whole_s / crowd, weight, NOISE_S, NOISE, True))
        parts = run.parts(amounts)
        longest_s = max((seconds for _, _, seconds in parts), default=0.0)
        vague_s = NOISE_S + OF_WHOLE * max(longest_s, whole_s or 0.0) / crowd
        for unit, amount, seconds in parts:
            if unit in number:
                columns = ((number[unit], amount),)
                rows.append(_Row(columns, seconds / crowd, weight, vague_s, PART_NOISE, False))
    return rows


def _solve(rows: Sequence[_Row], start: Sequence[float], vague: float) -> list[float]:
    """The coefficients, by iteratively reweighted least squares."""
    if not rows:
        return list(start)
    mean = _brought_near(rows, start)
    scale = _scales(rows, mean)
    pull = [(s / (vague * max(m, SMALL * s) if m > 0 else s)) ** 2 for m, s in zip(mean, scale, strict=True)]
    found = mean
    for number in range(PASSES):
        found = _least_squares(rows, _weights(rows, found, 1 if number < FIRST_PASSES else 2), mean, pull, scale)
    return found


def _brought_near(rows: Sequence[_Row], start: Sequence[float]) -> list[float]:
    """The prior at the speed of the median run: a machine is sooner three times as slow in everything than in one
    thing, and rows are judged by how far off they are. Where runners measured a unit, at the speed they measured; what
    hardly counted in the runs stays as it is.
    """
    whole: list[tuple[float, float]] = []
    parts: dict[int, list[tuple[float, float]]] = {}
    counted = [0.0] * len(start)
    for row in rows:
        if (said := row.said(start)) > 0:
            (whole if row.whole else parts.setdefault(row.amounts[0][0], [])).append((row.seconds / said, row.weight))
        if row.whole and said > 0:
            for n, amount in row.amounts:
                counted[n] += row.weight * amount * start[n] / said
    near = median(whole) if whole else 1.0
    least = SMALL * sum(weight for _, weight in whole)
    ratios = [median(parts[n]) if n in parts else near if counted[n] > least else 1.0 for n in range(len(start))]
    return [known * ratio for known, ratio in zip(start, ratios, strict=True)]


def _scales(rows: Sequence[_Row], mean: Sequence[float]) -> list[float]:
    """What each coefficient would be if it alone made up a row: in the median of the rows that it is in."""
    likely: list[list[tuple[float, float]]] = [[] for _ in mean]
    for row in rows:
        for n, amount in row.amounts:
            likely[n].append((row.seconds / amount, row.weight))
    return [max(1e-9, m, median(seen) if seen else 0.0) for m, seen in zip(mean, likely, strict=True)]


def _weights(rows: Sequence[_Row], found: Sequence[float], power: int) -> list[float]:
    """By noise and age; outliers' are lowered (`power` 1: after Huber, 2: their pull goes to nothing)."""
    noise = [row.noise_s + row.noise * row.said(found) for row in rows]
    off = [abs(row.seconds - row.said(found)) / n for row, n in zip(rows, noise, strict=True)]
    limit = HUBER * max(1.0, median([(o, row.weight) for o, row in zip(off, rows, strict=True)]))
    return [
        row.weight / n**2 * min(1.0, limit / max(o, 1e-9)) ** power for row, n, o in zip(rows, noise, off, strict=True)
    ]


def _least_squares(
    rows: Sequence[_Row], weights: Sequence[float], mean: Sequence[float], pull: Sequence[float], scale: Sequence[float]
) -> list[float]:
    """Of the rows and the prior, which pulls each coefficient to its mean. In units of `scale`, so that joules of one
    unit and microseconds of another do not spoil the arithmetic.
    """
    size = len(mean)
    matrix = [[pull[n] if n == m else 0.0 for m in range(size)] for n in range(size)]
    right = [pull[n] * mean[n] / scale[n] for n in range(size)]
    for row, weight in zip(rows, weights, strict=True):
        scaled = [(n, amount * scale[n]) for n, amount in row.amounts]
        for n, a in scaled:
            right[n] += weight * a * row.seconds
            for m, b in scaled:
                matrix[n][m] += weight * a * b
    return [value * s for value, s in zip(non_negative(matrix, right), scale, strict=True)]


def _crowding(
    runs: Sequence[Run],
    weights: Sequence[float],
    units: Sequence[str],
    at_most: tuple[str, ...],
    found: Sequence[float],
    prior: float,
) -> float:
    """By which share each run beside it slowed a run, compared to the runs with none beside them: the median."""
    rates = dict(zip(units, found[1:], strict=True))
    alone, crowded = [(1.0, 0.5)], []
    for run, weight in zip(runs, weights, strict=True):
        whole_s = run.whole_s()
        said_s = found[0] + sum(amount * rates.get(unit, 0.0) for unit, amount in run.amounts(at_most).items())
        if whole_s is None or said_s <= 0:
            continue
        if run.beside > 0:
            crowded.append((whole_s / said_s, run.beside, weight))
        else:
            alone.append((whole_s / said_s, weight))
    usual = median(alone)
    seen = [(max(0.0, ratio / usual - 1.0) / beside, weight) for ratio, beside, weight in crowded]
    return min(MOST_CROWDING, median([(prior, PRIOR_CROWDING_RUNS), *seen]))
