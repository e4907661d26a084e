"""What is known of the speed of one (capability, model, device) here, from the first guess to the last run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from outbid_contracts.capability import Prior
from outbid_node.estimating.fit import HALF_LIFE_RUNS, USUAL_SPREAD, Belief, fit
from outbid_node.estimating.lengths import Steps, lengths, needed, steps
from outbid_node.estimating.quantiles import median
from outbid_node.estimating.run import MOST, Run

WINDOW, FITTED = 96, 32
"""Runs that are remembered, for the lengths of answers, and that speeds are fitted to; the oldest of these weigh a
fortieth of the newest.
"""

LOADS = 8

VAGUE_PRIOR, VAGUE_WARM_UP = 1.0, 0.4
"""By which share a coefficient may differ from the capability's guess, and from what a warm-up measured."""

PRIOR_LOADS = 0.3
"""The guess of the loading time weighs as much as so many loadings."""

REFIT_S = 0.25
"""A fit takes about 2 ms, so where runs come by the thousand not each is followed by one."""


@dataclass(frozen=True, slots=True)
class Speed:
    """The numbers of an offer (see there). `source` says for people what they rest on."""

    load_s: float
    fixed_s: float
    rates: Mapping[str, float]
    crowding: float = 0.0
    spread: float = USUAL_SPREAD
    typical: dict[str, tuple[float, float]] = field(default_factory=dict)
    typical_from: dict[str, Steps] = field(default_factory=dict)
    source: str = "prior"


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What a runner measured of itself when it came up, or a calibration. None for what it did not."""

    load_s: float | None
    rates: Mapping[str, float]
    fixed_s: float | None = None
    source: str = "warm-up"


class Learner:
    """Learns from warm-ups and runs as they come. `at_most`: the units whose asked amount is only an upper bound."""

    def __init__(
        self, prior: Prior, at_most: tuple[str, ...] = (), clock: Callable[[], float] = lambda: time.monotonic()
    ) -> None:
        self.prior = prior
        self.runs = 0
        """So many it has learnt from."""
        self._at_most = at_most
        self._clock = clock
        self._window: deque[Run] = deque(maxlen=WINDOW)
        self._warm_ups: deque[WarmUp] = deque(maxlen=LOADS)
        self._speed: Speed | None = None
        self._fitted_at = 0.0
        self._stale = True

    @property
    def known(self) -> bool:
        """Something was measured here."""
        return bool(self.runs or self._warm_ups)

    def note(self, run: Run) -> None:
        """A run was done. What follows from it is worked out when somebody asks."""
        self._window.append(run)
        self.runs += 1
        self._stale = True

    def warmed_up(self, warm_up: WarmUp) -> None:
        self._warm_ups.append(warm_up)
        self._speed = None

    def recall(self, runs: Sequence[Run], warm_ups: Sequence[WarmUp]) -> None:
        """What was learnt before this node started, each from the oldest."""
        self._window = deque([*runs, *self._window], maxlen=WINDOW)
        self._warm_ups = deque([*warm_ups, *self._warm_ups], maxlen=LOADS)
        self.runs += len(runs)
        self._speed = None

    def believe(self, prior: Prior) -> None:
        """Another guess than the one before."""
        self.prior, self._speed = prior, None

    def speed(self) -> Speed:
        if self._speed is None or (self._stale and self._clock() - self._fitted_at >= REFIT_S):
            self._speed = self._fit()
            self._stale, self._fitted_at = False, self._clock()
        return self._speed

    def _fit(self) -> Speed:
        typical, typical_from = self._typical()
        found = fit(list(self._window)[-FITTED:], self._belief(), self._at_most)
        return Speed(
            load_s=self._load_s(),
            fixed_s=found.fixed_s,
            rates=found.rates,
            crowding=found.crowding,
            spread=found.spread,
            typical=typical,
            typical_from=typical_from,
            source=self._source(),
        )

    def _belief(self) -> Belief:
        """The guess, replaced by what the last warm-up measured, since that was on this very machine."""
        prior = self.prior
        warm = next((warm_up for warm_up in reversed(self._warm_ups) if warm_up.rates), None)
        if warm is None:
            return Belief(prior.fixed_s, prior.rates, prior.crowding, VAGUE_PRIOR)
        rates = {unit: rate for unit, rate in warm.rates.items() if 0 <= rate <= MOST}
        fixed_s = warm.fixed_s if warm.fixed_s is not None and 0 <= warm.fixed_s <= MOST else prior.fixed_s
        return Belief(fixed_s, {**prior.rates, **rates}, prior.crowding, VAGUE_WARM_UP)

    def _load_s(self) -> float:
        """The median, the newest counting most."""
        seen = [warm_up.load_s for warm_up in self._warm_ups if warm_up.load_s is not None]
        aged = [(s, 0.5 ** (age / HALF_LIFE_RUNS)) for age, s in enumerate(reversed(seen)) if 0 <= s <= MOST]
        return median([*aged, (self.prior.load_s, PRIOR_LOADS)])

    def _typical(self) -> tuple[dict[str, tuple[float, float]], dict[str, Steps]]:
        """Of all runs, and by what was asked for."""
        found, by_bound = {}, {}
        for unit in self._at_most:
            seen = lengths(self._window, unit)
            if seen and (usual := needed(seen, 0.5)) < MOST:
                found[unit] = (usual, needed(seen, 0.9))
                if known := steps(seen):
                    by_bound[unit] = known
        return found, by_bound

    def _source(self) -> str:
        if self.runs:
            return f"{self.runs} job{'s' if self.runs > 1 else ''}"
        return self._warm_ups[-1].source if self._warm_ups else "prior"


def scaled(prior: Prior, load: float, fixed: float, rates: Mapping[str, float]) -> Prior:
    """A guess with each of its numbers multiplied."""
    return Prior(
        load_s=prior.load_s * load,
        fixed_s=prior.fixed_s * fixed,
        crowding=prior.crowding,
        rates={unit: rate * rates.get(unit, 1.0) for unit, rate in prior.rates.items()},
    )
