"""One run: a fleet, a trace and a scheduler on one simulated clock, and what came of every job."""

from __future__ import annotations

import asyncio
import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from outbid_bench.simulate.fleets import Absence, Plan
from outbid_bench.simulate.hosts import Host, Run
from outbid_bench.simulate.machines import Engine
from outbid_bench.simulate.traces import Task

MISSED_S = 3.2
"""After so long without a word a machine is known to be gone: Outbid's own time, granted to all schedulers (products'
health checks take 10 s and more).
"""

NOISE = 0.15
"""Sigma of the lognormal factor by which the same work takes longer or shorter, per job and kind of machine."""


@dataclass(slots=True)
class Result:
    """A job that is done. `best_s`: from its arrival, had it had the best machine that was there for itself alone."""

    task: Task
    host: str
    ended_s: float
    attempts: int
    best_s: float
    wrong: bool
    """At its award another machine with a free slot would have finished it at least a tenth sooner."""
    energy_j: float

    @property
    def took_s(self) -> float:
        return self.ended_s - self.task.arrives_s

    @property
    def late(self) -> bool:
        return self.task.deadline_s is not None and self.took_s > self.task.deadline_s


class Scheduler(Protocol):
    """Told of everything by the world; starts runs by `world.start` and hands them in with `world.done`."""

    def begin(self, world: World) -> None: ...

    def arrive(self, task: Task) -> None: ...

    def left(self, host: Host, lost: Sequence[Run], absence: Absence) -> None:
        """It went, now; `lost` ran there. Without a word if `absence.abrupt`: a fair scheduler notices later."""

    def back(self, host: Host) -> None: ...

    def quiet(self, host: Host) -> None:
        """Its quiet hours begin or end, or its charger is plugged or unplugged."""

    def end(self) -> None:
        """All jobs are done."""


@dataclass(eq=False)
class World:
    """`spent_s`: processor seconds that deciding took, as the scheduler counts them."""

    loop: asyncio.AbstractEventLoop
    plans: Sequence[Plan]
    tasks: Sequence[Task]
    scheduler: Scheduler
    seed: int
    hosts: list[Host] = field(default_factory=list)
    results: dict[str, Result] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    refusals: int = 0
    spent_s: float = 0.0
    _wrong: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        noise = Noise(self.seed)
        self.hosts = [Host(plan, self.loop, noise) for plan in self.plans]
        self._all_done = self.loop.create_future()

    # -- for schedulers -------------------------------------------------------------------------------------------

    def able(self, capability: str) -> list[Host]:
        return [host for host in self.hosts if host.engine(capability)]

    def start(self, host: Host, task: Task, on_end: Callable[[Run], None], fraction: float = 0.0) -> Run:
        assert task.id not in self.results, f"{task.id} is done already"
        self._wrong[task.id] = self._is_wrong(host, task)
        self.attempts[task.id] = self.attempts.get(task.id, 0) + 1
        return host.start(task, on_end, fraction)

    def done(self, run: Run, host: Host) -> None:
        task = run.task
        assert task.id not in self.results, f"{task.id} ended twice"
        now_s = self.loop.time()
        kinds = {other.plan.machine.kind: other for other in self.able(task.capability)}
        best_s = min(other.alone_s(task) for other in kinds.values())
        attempts = self.attempts[task.id]
        self.results[task.id] = Result(task, host.name, now_s, attempts, best_s, self._wrong[task.id], run.energy_j)
        if len(self.results) == len(self.tasks) and not self._all_done.done():
            self._all_done.set_result(None)

    def _is_wrong(self, host: Host, task: Task) -> bool:
        """By the truth of this moment, new jobs left out of account."""
        here_s = finish_s(host, task)
        others = [other for other in self.able(task.capability) if other is not host and other.free(task.capability)]
        return any(finish_s(other, task) < 0.9 * here_s for other in others)

    # -- the run --------------------------------------------------------------------------------------------------

    async def run(self, limit_s: float = math.inf) -> None:
        """Until all jobs are done. Raises TimeoutError after `limit_s` of simulated time, and what any callback
        raises.
        """
        self.loop.set_exception_handler(self._broken)
        for host in self.hosts:
            self._arrange(host)
        self.scheduler.begin(self)
        for task in self.tasks:
            self.loop.call_at(task.arrives_s, self.scheduler.arrive, task)
        if self.tasks:
            async with asyncio.timeout(None if limit_s == math.inf else limit_s):
                await self._all_done
        for host in self.hosts:
            host.advance()
        self.scheduler.end()

    def _broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self._all_done.done():
            self._all_done.set_exception(context.get("exception") or RuntimeError(context["message"]))

    def _arrange(self, host: Host) -> None:
        host.on_flat = self._flat
        for absence in host.plan.absences:
            self._at(absence.from_s, functools.partial(self._leave, host, absence))
            self._at(absence.to_s, functools.partial(self._return, host))
        for begin_s, end_s in host.plan.quiet:
            self._at(begin_s, functools.partial(self._quiet, host, True))
            self._at(end_s, functools.partial(self._quiet, host, False))
        for begin_s, end_s in host.plan.unplugged:
            self._at(begin_s, functools.partial(self._plug, host, True))
            self._at(end_s, functools.partial(self._plug, host, False))

    def _at(self, at_s: float, what: Callable[[], None]) -> None:
        if at_s <= self.loop.time():
            self.loop.call_soon(what)
        else:
            self.loop.call_at(at_s, what)

    def _leave(self, host: Host, absence: Absence) -> None:
        if host.up:
            self.scheduler.left(host, host.leave(), absence)

    def _return(self, host: Host) -> None:
        if not host.up:
            host.come_back()
            self.scheduler.back(host)

    def _quiet(self, host: Host, quiet: bool) -> None:
        host.quiet = quiet
        self.scheduler.quiet(host)

    def _plug(self, host: Host, on_battery: bool) -> None:
        host.plug(on_battery)
        if not on_battery:
            self._return(host)
        self.scheduler.quiet(host)

    def _flat(self, host: Host) -> None:
        self._leave(host, Absence(self.loop.time(), math.inf, abrupt=True))


class Noise:
    """The factor of one task on one kind of machine: the same for every scheduler."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._factors: dict[tuple[int, str], float] = {}

    def __call__(self, task: Task, kind: str) -> float:
        key = (task.number, kind)
        if key not in self._factors:
            rng = random.Random(f"{self._seed}/{task.number}/{kind}")
            self._factors[key] = rng.lognormvariate(0.0, NOISE)
        return self._factors[key]


def finish_s(host: Host, task: Task, fraction: float = 0.0) -> float:
    """Seconds from now until `host` would have done the task if it began now and nothing else came, by the truth: as
    many others as run there now slow it for as long as they last.
    """
    engine = host.engine(task.capability)
    assert engine is not None
    host.advance()
    load_s = 0.0 if host.warm(task.capability) else engine.load_s
    warm_s = host.warm_s.get(task.capability)
    if warm_s is not None and load_s:
        load_s = max(0.0, warm_s - host.loop.time())
    return load_s + _ends([*_under_way(host), _mine(host, task, engine, fraction)])[-1]


def shared_s(host: Host, task: Task, fraction: float = 0.0) -> tuple[float, float]:
    """(seconds until it is done beside what runs there now, seconds that the others together end later by it)."""
    engine = host.engine(task.capability)
    assert engine is not None
    left = _under_way(host)
    ends = _ends([*left, _mine(host, task, engine, fraction)])
    return ends[-1], sum(ends[:-1]) - sum(_ends(left))


_Left = tuple[float, str, float]
"""Of a run: seconds alone, capability, crowding."""


def _under_way(host: Host) -> list[_Left]:
    return [(run.left_s, run.task.capability, run.engine.crowding) for run in host.running]


def _mine(host: Host, task: Task, engine: Engine, fraction: float) -> _Left:
    return host.alone_s(task, fraction), task.capability, engine.crowding


def _ends(left: list[_Left]) -> list[float]:
    """When each of these runs ends, if they share the machine and no other comes."""
    ends = [0.0] * len(left)
    rest = {index: run for index, run in enumerate(left)}
    at_s = 0.0
    while rest:
        counts: dict[str, int] = {}
        for _, capability, _ in rest.values():
            counts[capability] = counts.get(capability, 0) + 1
        slow = {i: len(counts) * (1.0 + crowding * (counts[name] - 1)) for i, (_, name, crowding) in rest.items()}
        first = min(rest, key=lambda i: rest[i][0] * slow[i])
        step_s = rest[first][0] * slow[first]
        at_s += step_s
        for i in list(rest):
            seconds, name, crowding = rest[i]
            rest[i] = (seconds - step_s / slow[i], name, crowding)
            if i == first or rest[i][0] <= 1e-9:
                ends[i] = at_s
                del rest[i]
    return ends
