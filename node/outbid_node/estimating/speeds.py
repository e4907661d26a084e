"""All that a node knows of its own speed: a learner for each capability, model and device, and what it can tell of
models that never ran here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from outbid_contracts.capability import Capability, Prior
from outbid_contracts.messages import Offer
from outbid_node.estimating.learner import Learner, Speed, WarmUp, scaled
from outbid_node.estimating.lengths import Steps
from outbid_node.estimating.quantiles import median
from outbid_node.estimating.run import Run

Kind = tuple[str, str | None]
"""Capability and model."""

Typical = tuple[dict[str, tuple[float, float]], dict[str, Steps]]
"""As in `Offer.typical` and `Offer.typical_from`."""

NOTHING: Typical = ({}, {})

MOST_OFF = 50.0
"""How far a guess is moved by what other models showed."""

CARRY_S = 5.0
"""How often it is looked whether other models showed something new."""


@dataclass(slots=True)
class Recalled:
    """What the history holds of one capability and model, each from the oldest, by kind of device."""

    runs: dict[str, list[Run]] = field(default_factory=dict)
    warm_ups: dict[str, list[WarmUp]] = field(default_factory=dict)
    device: str = ""
    """Where it ran last."""


@dataclass(slots=True)
class _Known:
    """The learners of one capability and model; `guess` is the capability's own, without what others showed."""

    guess: Prior
    on_card: bool
    at_most: tuple[str, ...]
    device: str = ""
    learners: dict[str, Learner] = field(default_factory=dict)
    looked: float = -CARRY_S


class Speeds:
    """`clock`: seconds, monotonic; looked up late, so that a simulation can put its own in its place."""

    def __init__(self, clock: Callable[[], float] = lambda: time.monotonic()) -> None:
        self._clock = clock
        self._known: dict[Kind, _Known] = {}
        self._recalled: dict[Kind, Recalled] = {}
        self._elsewhere: dict[Kind, Typical] = {}

    def learner(
        self, capability: Capability, model: str | None, guess: Callable[[], Prior], *, on_card: bool
    ) -> Learner:
        """The learner for the device where that capability and model ran last. `guess` is asked for once; `on_card`:
        the model is meant for a graphics card.
        """
        kind = (capability.name, model)
        known = self._known.get(kind)
        if known is None:
            known = self._known[kind] = _Known(guess(), on_card, capability.at_most)
            self._put_in(kind, known)
        learner = known.learners.get(known.device)
        if learner is None:
            learner = known.learners[known.device] = Learner(known.guess, known.at_most, self._clock)
        if not learner.known and self._clock() - known.looked >= CARRY_S:
            known.looked = self._clock()
            self._carry_over(kind, known, learner)
        return learner

    def measured(self, kind: Kind) -> Learner | None:
        """The same if anything was measured there: the short way, for every bid."""
        known = self._known.get(kind)
        learner = known.learners.get(known.device) if known is not None else None
        return learner if learner is not None and learner.known else None

    def runs_on(self, capability: str, model: str | None, device: str) -> None:
        """Its runner came up on this kind of device. What was learnt without knowing the device was learnt there."""
        known = self._known.get((capability, model))
        if known is None or known.device == device:
            return
        before, known.device = known.device, device
        if not before and device not in known.learners and before in known.learners:
            known.learners[device] = known.learners.pop(before)

    def typical(self, capability: str, model: str | None, own: Speed) -> Typical:
        """How long answers are is the model's nature, not the node's: until a node has seen enough of them itself it
        believes the others, so that their bids can be compared.
        """
        if own.typical:
            return own.typical, own.typical_from
        return self._elsewhere.get((capability, model), NOTHING)

    def heard(self, offer: Offer) -> None:
        """What another node offers."""
        if offer.typical:
            self._elsewhere[(offer.capability, offer.model)] = (offer.typical, offer.typical_from)

    def recall(self, recalled: Mapping[Kind, Recalled]) -> list[Learner]:
        """The history was read; what ran meanwhile is not in it. Returns those that know more now."""
        self._recalled = dict(recalled)
        return [learner for kind, known in self._known.items() for learner in self._put_in(kind, known)]

    def _put_in(self, kind: Kind, known: _Known) -> list[Learner]:
        recalled = self._recalled.pop(kind, None)
        if recalled is None:
            return []
        known.device = known.device or recalled.device
        found = []
        for device in sorted({*recalled.runs, *recalled.warm_ups}):
            learner = known.learners.setdefault(device, Learner(known.guess, known.at_most, self._clock))
            learner.recall(recalled.runs.get(device, []), recalled.warm_ups.get(device, []))
            found.append(learner)
        return found

    def _carry_over(self, kind: Kind, known: _Known, learner: Learner) -> None:
        """Nothing of it was measured here yet: if the other models of this capability are three times as slow as
        guessed, so will this one be.
        """
        others = [
            (other.guess, learnt.speed())
            for (capability, _), other in self._known.items()
            if capability == kind[0] and other is not known and other.on_card == known.on_card
            for learnt in other.learners.values()
            if learnt.known
        ]
        if others:
            learner.believe(_moved(known.guess, others))


def _moved(guess: Prior, others: Sequence[tuple[Prior, Speed]]) -> Prior:
    """By the medians of actual over guessed."""
    rates = {
        unit: _ratio([(g.rates.get(unit, 0.0), speed.rates.get(unit, 0.0)) for g, speed in others])
        for unit in guess.rates
    }
    return scaled(
        guess,
        _ratio([(g.load_s, speed.load_s) for g, speed in others]),
        _ratio([(g.fixed_s, speed.fixed_s) for g, speed in others]),
        rates,
    )


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    ratios = [(actual / guessed, 1.0) for guessed, actual in pairs if guessed > 0 and actual > 0]
    return min(MOST_OFF, max(1 / MOST_OFF, median(ratios))) if ratios else 1.0
