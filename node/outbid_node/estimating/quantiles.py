"""Quantiles of weighted numbers."""

from __future__ import annotations

from collections.abc import Iterable


def quantile(weighted: Iterable[tuple[float, float]], share: float) -> float:
    """The least number that has at least `share` of all weight at or below it. Of (number, weight), at least one."""
    ordered = sorted(weighted)
    wanted = share * sum(weight for _, weight in ordered)
    reached = 0.0
    for number, weight in ordered:
        reached += weight
        if reached >= wanted * (1 - 1e-9):
            return number
    return ordered[-1][0]


def median(weighted: Iterable[tuple[float, float]]) -> float:
    """Of two equally heavy halves the upper end of the lower."""
    return quantile(weighted, 0.5)
