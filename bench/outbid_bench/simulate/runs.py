"""One simulation from its description to its figures. Descriptions and figures pass between processes."""

from __future__ import annotations

import contextlib
import logging
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from outbid_bench.simulate.baselines import BASELINES
from outbid_bench.simulate.bounds import least_energy_j, least_mean_s
from outbid_bench.simulate.capacity import Capacity, capacities, capacity
from outbid_bench.simulate.clairvoyant import VARIANTS, Clairvoyant
from outbid_bench.simulate.clock import simulated
from outbid_bench.simulate.fleets import Plan, home, lab
from outbid_bench.simulate.mesh import SimulatedMesh
from outbid_bench.simulate.traces import Rate, Task, trace
from outbid_bench.simulate.world import Noise, Result, Scheduler, World
from outbid_bench.stats import percentile
from outbid_contracts.policy import GOALS, Goal

HOME = 5

LIMIT = 20.0
"""A run that lasts so many times the arrivals' span is stuck; round robin at 90 % load needs five to ten."""

_MAKERS: Mapping[str, Callable[[int], Scheduler]] = {
    **{cls.__name__: cls for cls in BASELINES},
    **{f"clairvoyant {n}": lambda seed, v=v: Clairvoyant(v) for n, v in enumerate(VARIANTS)},  # type: ignore[misc]
    **{f"outbid {goal}": lambda seed, goal=goal: SimulatedMesh(seed, goal) for goal in GOALS},  # type: ignore[misc]
}
BASELINE_NAMES = tuple(_MAKERS)[: len(BASELINES)]
CLAIRVOYANT_NAMES = tuple(name for name in _MAKERS if name.startswith("clairvoyant"))


def outbid(goal: Goal) -> str:
    return f"outbid {goal}"


Presence = Literal["all there", "come and go", "go and overload"]


@dataclass(frozen=True, slots=True)
class Setup:
    """`load`: arrivals as a share of what the machines could do at most (`capacity`).

    `presence`: all machines are there; or they come and go, and the load is a share of what those there can do at the
    time; or they come and go and the arrivals take no notice, at a share of what they can do in the mean: while the
    fastest is away far more comes in than can be done. Jobs come for `span_s` seconds; a run ends when all are done.
    """

    nodes: int = HOME
    load: float = 0.7
    seed: int = 1
    bursty: bool = False
    presence: Presence = "come and go"
    span_s: float = 3600.0

    def plans(self) -> list[Plan]:
        make = home if self.nodes == HOME else lab(self.nodes)
        plans = make(random.Random(f"fleet/{self.seed}"), self.span_s)
        return [replace(p, absences=(), quiet=()) for p in plans] if self.presence == "all there" else plans

    def tasks(self, plans: Sequence[Plan], most: Capacity) -> list[Task]:
        rng = random.Random(f"trace/{self.seed}")
        rates = [Rate(0.0, self.span_s, self.load * most.per_s)]
        if self.presence == "come and go":
            rates = [Rate(begin, end, self.load * per_s) for begin, end, per_s in capacities(plans, self.span_s)]
        return trace(rng, rates, bursty=self.bursty)


@dataclass(frozen=True, slots=True)
class Machine:
    """What one machine did. `busy` is the share of the arrivals' time that it worked."""

    name: str
    kind: str
    jobs: int
    busy: float
    energy_j: float
    lowest_charge: float


@dataclass(frozen=True, slots=True)
class Figures:
    """`slowdown`: the mean of completion time over that of the job alone on the best machine. `late`: of the jobs with
    a deadline. `wrong`: of the starts, another machine would have been done at least a tenth sooner. `again`: attempts
    lost. `decision_us`: processor time per job, `beat_us` per heartbeat heard. `least_s`, `least_j`: `bounds`. `per_s`:
    jobs a second that the fleet could do.
    """

    scheduler: str
    jobs: int
    mean_s: float
    p95_s: float
    slowdown: float
    late: float
    wrong: float
    energy_j: float
    cost_usd: float
    again: int
    refusals: int
    decision_us: float
    beat_us: float
    least_s: float
    least_j: float
    per_s: float
    machines: tuple[Machine, ...]


def simulate(setup: Setup, scheduler: str) -> Figures:
    """One run; the same again for the same arguments, but for what deciding cost."""
    plans = setup.plans()
    most = capacity(plans, setup.span_s)
    tasks = setup.tasks(plans, most)
    world = _run(setup, plans, tasks, _MAKERS[scheduler](setup.seed))
    assert set(world.results) == {task.id for task in tasks}, "a job was lost"
    noise = Noise(setup.seed)
    least = least_mean_s(plans, tasks, noise, most.worth), least_energy_j(plans, tasks, noise)
    return _figures(setup, scheduler, world, least, most.per_s)


def _run(setup: Setup, plans: Sequence[Plan], tasks: Sequence[Task], scheduler: Scheduler) -> World:
    with _silent("outbid_node", "asyncio"), simulated() as loop:
        world = World(loop, plans, tasks, scheduler, setup.seed)
        loop.run_until_complete(world.run(LIMIT * setup.span_s))
    return world


@contextlib.contextmanager
def _silent(*names: str) -> Iterator[None]:
    """Machines leave here by the hundred, and each owner would say so."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _figures(setup: Setup, scheduler: str, world: World, least: tuple[float, float], per_s: float) -> Figures:
    results = list(world.results.values())
    beats = world.scheduler.beats.spent_s if isinstance(world.scheduler, SimulatedMesh) else 0.0
    heard = world.scheduler.beats_heard if isinstance(world.scheduler, SimulatedMesh) else 1
    promised = [result for result in results if result.task.deadline_s is not None]
    return Figures(
        scheduler=scheduler,
        jobs=len(results),
        mean_s=statistics.mean(result.took_s for result in results),
        p95_s=percentile((result.took_s for result in results), 0.95),
        slowdown=statistics.mean(result.took_s / result.best_s for result in results),
        late=sum(result.late for result in promised) / max(1, len(promised)),
        wrong=sum(result.wrong for result in results) / len(results),
        energy_j=sum(host.energy_j for host in world.hosts),
        cost_usd=sum(host.cost_usd for host in world.hosts),
        again=sum(result.attempts - 1 for result in results),
        refusals=world.refusals,
        decision_us=world.spent_s / len(results) * 1e6,
        beat_us=beats / heard * 1e6,
        least_s=least[0],
        least_j=least[1],
        per_s=per_s,
        machines=_machines(setup, world, results),
    )


def _machines(setup: Setup, world: World, results: Sequence[Result]) -> tuple[Machine, ...]:
    done: dict[str, int] = {}
    for result in results:
        done[result.host] = done.get(result.host, 0) + 1
    return tuple(
        Machine(
            name=host.name,
            kind=host.plan.machine.kind,
            jobs=done.get(host.name, 0),
            busy=host.active_s / setup.span_s,
            energy_j=host.energy_j,
            lowest_charge=host.lowest_charge,
        )
        for host in world.hosts
    )
