"""Numbers from rounds: medians, percentiles, spread, and how they are written."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float

    def text(self, unit: str = "", digits: int = 2) -> str:
        """As `1.52x (1.40–1.66)`."""
        if self.low == self.high:
            return f"{self.median:.{digits}f}{unit}"
        return f"{self.median:.{digits}f}{unit} ({self.low:.{digits}f}–{self.high:.{digits}f})"

    def rate(self) -> str:
        """As `12 345 (11 001–12 900)`, for rates per second."""
        return f"{_grouped(self.median)} ({_grouped(self.low)}–{_grouped(self.high)})"

    def scaled(self, factor: float) -> Spread:
        return Spread(self.median * factor, self.low * factor, self.high * factor)


def spread(values: Iterable[float]) -> Spread:
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found))


def ratios(values: Sequence[float], references: Sequence[float]) -> Spread:
    """Of each round's value to the same round's reference: noise that hit both drops out."""
    return spread(value / reference for value, reference in zip(values, references, strict=True))


def percentile(values: Iterable[float], q: float) -> float:
    """The value that a share `q` of all does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * q))]


def _grouped(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")
