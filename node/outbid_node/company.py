"""Company: what a job adds to a machine that works anyhow, and when it is worth waiting for others to begin with. Pure.

A machine at work draws its watts however many jobs share it. So a job that joins others costs what it makes the machine
work longer, and one that begins alone costs several times its share of a full batch. A job whose policy counts joules
(`thrifty`) is ranked by the first, and may wait so as not to pay the second (`gathering`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from outbid_contracts.messages import Bid, Offer
from outbid_contracts.policy import Policy, Weights, weights_of
from outbid_node.estimate import Estimate
from outbid_node.places import Place, Places

THRIFTY = 0.05
"""To a goal that gives a second for 20 joules or fewer they are worth waiting for; `balanced` wants a kilojoule."""

NEARLY_FULL = 0.05
"""An excess below this part of the share in a full batch is none: company could save no more."""

FADES = 0.7
"""So much of what is known about arrivals remains with each new one."""


def thrifty(policy: Policy) -> bool:
    weights = weights_of(policy)
    return weights.per_j > 0 and weights.per_j >= THRIFTY * per_s(weights)


def per_s(weights: Weights) -> float:
    """What a second adds to a score."""
    return weights.p50 + weights.p90


def worth_s(weights: Weights, joules: float) -> float:
    """Seconds for which a job may wait to save so much."""
    second = per_s(weights)
    return joules * weights.per_j / second if second > 0 else inf


class Company(NamedTuple):
    """Joules of a job on a node: what it would add now by itself, and its share as one of `of` in a full batch."""

    alone_j: float
    full_j: float
    of: int

    @property
    def excess_j(self) -> float:
        return self.alone_j - self.full_j

    @property
    def saves(self) -> bool:
        return self.of > 1 and self.excess_j > NEARLY_FULL * self.full_j


def company(offer: Offer, running: int, numbers: Estimate, ends_s: Sequence[float]) -> Company:
    """Of a job with these numbers beside so many others, which end in `ends_s`."""
    full_j = offer.watts * full_s(offer, running, numbers) / max(1, offer.slots)
    return Company(added_j(offer, running, numbers.finish_s, ends_s), full_j, offer.slots)


def added_j(offer: Offer, running: int, finish_s: float, ends_s: Sequence[float]) -> float:
    """Joules by which the machine's work grows when a job that takes `finish_s` begins beside so many that are expected
    to end in `ends_s` (sorted, as far as known): it slows them a little, or it outlasts them.
    """
    if running <= 0:
        return offer.watts * finish_s
    last_s = max(0.0, ends_s[-1]) if ends_s else finish_s
    slower = offer.crowding / (1.0 + offer.crowding * (running - 1))
    return offer.watts * max(finish_s - last_s, slower * min(finish_s, last_s))


def full_s(offer: Offer, running: int, numbers: Estimate) -> float:
    """Seconds in a full batch on the loaded model, from the numbers beside so many."""
    load_s = 0.0 if offer.warm else offer.load_s
    alone_s = max(0.0, numbers.finish_s - load_s) / (1.0 + offer.crowding * running)
    return alone_s * (1.0 + offer.crowding * max(0, offer.slots - 1))


def joining_j(places: Places, now: float, bid: Bid) -> float | None:
    """Joules that the job of this bid adds where it can begin now; None for a later one, whose joules count as they
    are: those of a full batch.
    """
    place = places.get(bid.node)
    if place is None or bid.later:
        return None
    return added_j(place.offer, running_on(place), bid.finish_s, [frees - now for frees in place.known_frees(now)])


def running_on(place: Place) -> int:
    return max(0, place.offer.slots - place.free)


@dataclass(slots=True)
class Arrivals:
    """How soon another such job comes while one is here. Time in which none is here does not count, so that whoever
    sends his next job when the last is done is not taken for company to himself.
    """

    here: int = 0
    came_beside: float = 0.0
    counted_s: float = 0.0
    since: float = 0.0
    until: float = 0.0

    def came(self, now: float) -> None:
        self._pass(now)
        beside = self.here > 0 or now < self.until
        self.came_beside, self.counted_s = FADES * self.came_beside + beside, FADES * self.counted_s
        self.here += 1

    def went(self, now: float, lasts_s: float) -> None:
        """To a node, where it is for about so long."""
        self._pass(now)
        self.here = max(0, self.here - 1)
        self.until = max(self.until, now + lasts_s)

    def mean_s(self, now: float) -> float:
        """Infinite as long as none ever came beside another."""
        self._pass(now)
        return self.counted_s / self.came_beside if self.came_beside > 0 else inf

    def _pass(self, now: float) -> None:
        until = now if self.here else min(now, self.until)
        self.counted_s += max(0.0, until - self.since)
        self.since = now
