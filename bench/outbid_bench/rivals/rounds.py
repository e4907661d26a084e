"""Several systems measured in turns: each round drives all of them, so that noise hits all alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from outbid_bench.options import Options
from outbid_bench.plots import Bars
from outbid_bench.rivals.driving import WARM_UP_S, Driven, Submit, drive
from outbid_bench.rivals.running import Failed, Running, running
from outbid_bench.rivals.systems import System
from outbid_bench.stats import Spread, ratios, spread

COUNTS = (1, 16, 64)
"""Jobs in flight."""
MANY = COUNTS[-1]

AWAKE_S = 0.05
"""Each is driven so long before it is measured: Dramatiq's worker sleeps up to half a second when it had no work."""

Drive = Callable[[int, float], Awaitable[Driven]]
"""Keeps so many jobs in flight for so many seconds."""


@dataclass(slots=True)
class Contender:
    """`driven`: for each number of jobs in flight, what each round found."""

    title: str
    promise: str
    drive: Drive
    driven: dict[int, list[Driven]] = field(default_factory=dict)

    def per_s(self, in_flight: int = MANY) -> list[float]:
        return [driven.per_s for driven in self.driven[in_flight]]

    def ms(self, which: str) -> Spread:
        """Of one of Driven's times, one job in flight."""
        return spread(getattr(driven, which) for driven in self.driven[1]).scaled(1000)

    def of(self, other: Contender) -> Spread:
        """Its jobs per second, of the other's, round by round."""
        return ratios(self.per_s(), other.per_s())


def driving(submit: Submit) -> Drive:
    """Drives it from this process."""
    return lambda in_flight, seconds: drive(submit, in_flight, seconds)


@dataclass(slots=True)
class Compared:
    """`left_out`: sentences on those that could not take part."""

    contenders: dict[str, Contender] = field(default_factory=dict)
    running: dict[str, Running] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    tried: list[tuple[str, float]] = field(default_factory=list)
    """Set-ups that were tried, with jobs per second; the first one takes part."""

    async def enter(self, stack: AsyncExitStack, systems: Mapping[str, System], options: Options) -> None:
        """Start those that are installed."""
        for name, system in systems.items():
            if needed := system.missing():
                self.left_out.append(f"{system.title} was left out: it needs {needed}.")
                continue
            options.say(f"starting {system.title}")
            try:
                self._add(name, await stack.enter_async_context(running(system, options.folder / name)))
            except Failed as error:
                self.left_out.append(_said(error))

    def _add(self, name: str, found: Running) -> None:
        self.running[name] = found
        self.contenders[name] = Contender(found.system.title, found.system.promise, found.drive)

    async def enter_best(
        self, stack: AsyncExitStack, name: str, choices: Sequence[System], seconds: float, options: Options
    ) -> None:
        """Start the one of several set-ups that does most with many jobs in flight; without a choice the only one."""
        if needed := choices[0].missing():
            self.left_out.append(f"{choices[0].title} was left out: it needs {needed}.")
            return
        if len(choices) == 1:
            await self.enter(stack, {name: choices[0]}, options)
            return
        tried: list[tuple[float, System]] = []
        for number, system in enumerate(choices):
            options.say(f"trying {system.title}")
            try:
                async with running(system, options.folder / f"{name}-{number}") as found:
                    await found.drive(MANY, WARM_UP_S)
                    tried.append(((await found.drive(MANY, seconds)).per_s, system))
            except Failed as error:
                self.left_out.append(_said(error))
        tried.sort(key=lambda choice: -choice[0])
        self.tried = [(system.title, per_s) for per_s, system in tried]
        if tried:
            await self.enter(stack, {name: tried[0][1]}, options)

    async def round(self, seconds: float, counts: Sequence[int] = COUNTS) -> None:
        """A system that fails is left out from then on, with all that it did."""
        for in_flight in counts:
            for name, contender in list(self.contenders.items()):
                try:
                    await contender.drive(1, AWAKE_S)
                    driven = await contender.drive(in_flight, seconds)
                except Failed as error:
                    del self.contenders[name]
                    self.left_out.append(_said(error))
                else:
                    contender.driven.setdefault(in_flight, []).append(driven)

    async def warm_up(self) -> None:
        await self.round(WARM_UP_S, (MANY,))
        for contender in self.contenders.values():
            contender.driven.clear()

    def bars(self, name: str, title: str) -> Bars:
        """The quickest on top."""
        rows = [(label(found.title), spread(found.per_s())) for found in self.contenders.values()]
        return Bars(name, title, "jobs/s", sorted(rows, key=lambda row: -row[1].median))


def label(title: str) -> str:
    """A system's name without its set-up."""
    return title.partition(" (")[0]


def _said(error: Failed) -> str:
    """Its first and its last line: what failed, and what it said last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0]} {lines[-1]}" if len(lines) > 1 else lines[0]
