"""What is asked, and when: kinds of work, their sizes, and arrivals that come evenly or in bursts."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from outbid_bench.simulate.machines import CHAT, EMBED, IMAGE

Work = dict[str, float]


@dataclass(frozen=True, slots=True)
class Task:
    """`asked` is what a scheduler sees, `true` what it takes (an answer is shorter than the tokens asked for)."""

    number: int
    arrives_s: float
    capability: str
    asked: Work
    true: Work
    submitter: str
    deadline_s: float | None = None

    @property
    def id(self) -> str:
        return f"job{self.number:06d}"


@dataclass(frozen=True, slots=True)
class Kind:
    """`share` of all jobs. `most_s`: the deadline of those that have one."""

    capability: str
    share: float
    draw: Callable[[random.Random], tuple[Work, Work]]
    most_s: float


def _chat(median: float, prompt: float) -> Callable[[random.Random], tuple[Work, Work]]:
    """Lengths of prompts and answers are about lognormal (as in ShareGPT's and LMSYS-Chat's published histograms)."""

    def draw(rng: random.Random) -> tuple[Work, Work]:
        asked = 512.0 if median < 200 else 1024.0
        tokens = min(asked, max(4.0, round(rng.lognormvariate(math.log(median), 0.7))))
        prompts = round(rng.lognormvariate(math.log(prompt), 0.8)) + 10.0
        return {"prompt_tokens": prompts, "new_tokens": asked}, {"prompt_tokens": prompts, "new_tokens": tokens}

    return draw


def _image(rng: random.Random) -> tuple[Work, Work]:
    work = {"images": 1.0, "steps": float(rng.choice((8, 20, 20, 30)))}
    return work, work


def _embed(rng: random.Random) -> tuple[Work, Work]:
    work = {"texts": float(rng.choice((1, 1, 1, 8, 64)))}
    return work, work


MIX = (
    Kind(CHAT, 0.45, _chat(90, 150), most_s=90),
    Kind(CHAT, 0.20, _chat(350, 600), most_s=240),
    Kind(IMAGE, 0.10, _image, most_s=300),
    Kind(EMBED, 0.25, _embed, most_s=10),
)
"""An assumption: mostly chats, some long, some pictures, and many short texts to embed."""

WITH_DEADLINE = 0.5
SUBMITTERS = ("ada", "ben", "cleo", "dan")


def mean_work(mix: tuple[Kind, ...] = MIX, draws: int = 4000) -> dict[str, Work]:
    """Units of work per job of the mix, by capability."""
    rng = random.Random(0)
    totals: dict[str, Work] = {}
    for kind in mix:
        units = totals.setdefault(kind.capability, {})
        for _ in range(draws):
            for unit, count in kind.draw(rng)[1].items():
                units[unit] = units.get(unit, 0.0) + kind.share * count / draws
    return totals


def shares(mix: tuple[Kind, ...] = MIX) -> Mapping[str, float]:
    found: dict[str, float] = {}
    for kind in mix:
        found[kind.capability] = found.get(kind.capability, 0.0) + kind.share
    return found


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_s` jobs a second from `from_s` to `to_s`."""

    from_s: float
    to_s: float
    per_s: float


def trace(rng: random.Random, rates: Sequence[Rate], *, bursty: bool = False) -> list[Task]:
    """Jobs that arrive at these rates in the long run; `rates` follow each other."""
    busiest = max(rate.per_s for rate in rates)
    span_s = rates[-1].to_s
    times = _bursts(rng, busiest, span_s) if bursty else _poisson(rng, busiest, 0.0, span_s)
    kept = (at_s for at_s in times if rng.random() * busiest < _at(rates, at_s))
    return [_task(rng, number, at_s) for number, at_s in enumerate(kept)]


def _at(rates: Sequence[Rate], at_s: float) -> float:
    return next(rate.per_s for rate in rates if rate.from_s <= at_s < rate.to_s)


def _task(rng: random.Random, number: int, at_s: float) -> Task:
    kind = rng.choices(MIX, [kind.share for kind in MIX])[0]
    asked, true = kind.draw(rng)
    deadline_s = kind.most_s if rng.random() < WITH_DEADLINE else None
    return Task(number, at_s, kind.capability, asked, true, rng.choice(SUBMITTERS), deadline_s)


def _poisson(rng: random.Random, per_s: float, begin_s: float, end_s: float) -> Iterator[float]:
    at_s = begin_s + rng.expovariate(per_s)
    while at_s < end_s:
        yield at_s
        at_s += rng.expovariate(per_s)


BURST, LULL_S, BURST_S = 3.0, 80.0, 20.0
"""A burst has three times the mean rate (Markov-modulated Poisson process of two states); seconds are means."""


def _bursts(rng: random.Random, per_s: float, span_s: float) -> Iterator[float]:
    share = BURST_S / (LULL_S + BURST_S)
    quiet = (1 - BURST * share) / (1 - share)
    at_s, burst = 0.0, False
    while at_s < span_s:
        lasts_s = rng.expovariate(1 / (BURST_S if burst else LULL_S))
        rate = per_s * (BURST if burst else quiet)
        yield from _poisson(rng, rate, at_s, min(span_s, at_s + lasts_s))
        at_s, burst = at_s + lasts_s, not burst
