"""A finished run as the estimators see it: what was asked, what was done, how long that took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MOST_UNITS = 16
"""Of one run; a runner may name what it likes."""

LEAST, MOST = 1e-9, 1e9
"""Amounts and seconds outside are mistakes of a runner, not work."""

Measured = Mapping[str, tuple[float, float]]
"""Of each unit of work: how many, and the seconds spent on them."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run on this node that was done. `took_s`: from the award to its end, with the loading if it was not `warm`;
    None if not known. `beside`: other attempts that shared its runner. `part`: it went on with what another had begun,
    so that its amounts are not those of a whole job. `at_s`: Unix time of its end.
    """

    work: Mapping[str, float]
    measured: Measured
    took_s: float | None
    warm: bool = True
    beside: float = 0.0
    part: bool = False
    at_s: float = 0.0

    def whole_s(self) -> float | None:
        """What a warm bid for all of it would have had to say."""
        if self.part or not self.warm or self.took_s is None or not LEAST <= self.took_s <= MOST:
            return None
        return self.took_s

    def amounts(self, at_most: tuple[str, ...]) -> dict[str, float]:
        """What its whole time is explained by: the work as asked, because bids are made from that; but of the units in
        `at_most` what was really done.
        """
        found = dict(self.work)
        for unit in at_most:
            if unit in found and self.measured:
                found[unit] = min(found[unit], self.measured.get(unit, (0.0, 0.0))[0])
        return dict([(unit, amount) for unit, amount in found.items() if LEAST <= amount <= MOST][:MOST_UNITS])

    def parts(self, amounts: Mapping[str, float]) -> list[tuple[str, float, float]]:
        """(unit, amount, seconds) of what the runner measured; of units that the work does not name, as it counted."""
        found = []
        for unit, (count, seconds) in self.measured.items():
            amount = count if self.part else amounts.get(unit, count)
            if LEAST <= amount <= MOST and 0.0 <= seconds <= MOST:
                found.append((unit, amount, seconds))
        return found[:MOST_UNITS]
