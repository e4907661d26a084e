"""Which machines there are, and when each is there: sleeping, leaving, quiet hours, battery."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from outbid_bench.simulate.machines import (
    GAMING,
    H100,
    LAPTOP,
    MAC,
    MINI,
    NAS,
    PI,
    WORKSTATION,
    Machine,
)

Spans = tuple[tuple[float, float], ...]
"""Seconds from, to; in order, without overlap."""


@dataclass(frozen=True, slots=True)
class Absence:
    """`abrupt`: cut off without a word (power, Wi-Fi); else it says that it leaves and gives its jobs back."""

    from_s: float
    to_s: float
    abrupt: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """One machine over a run. In `quiet` hours it begins nothing; `unplugged` it lives on its battery."""

    name: str
    machine: Machine
    owner: bool = False
    """Jobs are accepted here. Such a machine stays, because the callers are beside it."""
    absences: tuple[Absence, ...] = ()
    quiet: Spans = ()
    unplugged: Spans = ()
    charge: float = 1.0
    """Of the battery at the beginning."""

    def there_s(self, span_s: float) -> float:
        """For how long of the first `span_s` seconds it takes work."""
        away = sum(max(0.0, min(span_s, a.to_s) - min(span_s, a.from_s)) for a in self.absences)
        return span_s - away - sum(max(0.0, min(span_s, to) - min(span_s, start)) for start, to in self.quiet)

    def is_there(self, at_s: float) -> bool:
        away = any(absence.from_s <= at_s < absence.to_s for absence in self.absences)
        return not away and not any(from_s <= at_s < to_s for from_s, to_s in self.quiet)


def home(rng: random.Random, span_s: float) -> list[Plan]:
    """Five machines. The gaming PC, most of the power, is away a quarter of the time: it sleeps, or somebody plays. The
    laptop goes now and then, and is on battery in the middle of the run; the NAS is quiet for a tenth of it.
    """
    third = span_s / 3
    quiet_s = rng.uniform(0.2, 0.8) * span_s
    return [
        Plan("pi", PI, owner=True),
        Plan("nas", NAS, owner=True, quiet=((quiet_s, quiet_s + 0.1 * span_s),)),
        Plan("mini", MINI, owner=True),
        Plan(
            "laptop",
            LAPTOP,
            absences=_comes_and_goes(rng, span_s, there_s=2400, away_s=300, abrupt=0.7),
            unplugged=((third, 2 * third),),
            charge=0.6,
        ),
        Plan("gaming", GAMING, absences=_comes_and_goes(rng, span_s, there_s=1500, away_s=500, abrupt=0.2)),
    ]


_LAB: Sequence[tuple[float, Machine]] = (
    (0.10, PI),
    (0.08, NAS),
    (0.24, MINI),
    (0.24, LAPTOP),
    (0.12, MAC),
    (0.10, GAMING),
    (0.10, WORKSTATION),
    (0.02, H100),
)
"""Shares of kinds, an assumption: many small machines, some with graphics cards, a rented card for every fifty."""

OWNERS = 4
"""The same in all labs, so that sizes can be compared."""


def lab(nodes: int) -> Callable[[random.Random, float], list[Plan]]:
    """A fleet of so many machines, 10 or more. Up to OWNERS mini PCs accept jobs."""

    def make(rng: random.Random, span_s: float) -> list[Plan]:
        counts = [max(1, round(share * nodes)) for share, _ in _LAB]
        counts[2] += nodes - sum(counts)
        plans: list[Plan] = []
        for count, (_, machine) in zip(counts, _LAB, strict=True):
            plans += [_member(rng, span_s, machine, number) for number in range(count)]
        return plans

    return make


def _member(rng: random.Random, span_s: float, machine: Machine, number: int) -> Plan:
    name = f"{machine.kind.split(' (')[0].replace(' ', '').lower()}{number}"
    if machine is MINI:
        return Plan(name, machine, owner=number < OWNERS)
    if machine is LAPTOP:
        unplugged = ((0.0, span_s),) if rng.random() < 0.3 else ()
        absences = _comes_and_goes(rng, span_s, there_s=1200, away_s=300, abrupt=0.7)
        return Plan(name, machine, absences=absences, unplugged=unplugged, charge=rng.uniform(0.3, 1.0))
    if machine is GAMING:
        return Plan(name, machine, absences=_comes_and_goes(rng, span_s, there_s=1500, away_s=500, abrupt=0.2))
    return Plan(name, machine)


def _comes_and_goes(
    rng: random.Random, span_s: float, *, there_s: float, away_s: float, abrupt: float
) -> tuple[Absence, ...]:
    """In the state of a long run at its beginning; `abrupt` is the share of times it goes without a word."""
    absences: list[Absence] = []
    here = rng.random() < there_s / (there_s + away_s)
    at_s = 0.0
    while at_s < span_s:
        lasts_s = rng.expovariate(1 / (there_s if here else away_s))
        if not here:
            absences.append(Absence(at_s, at_s + lasts_s, rng.random() < abrupt))
        at_s, here = at_s + lasts_s, not here
    return tuple(absences)
