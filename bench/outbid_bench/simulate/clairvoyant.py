"""A scheduler that knows what nobody can know: true durations, and when machines leave and come back.

It is central, hears of everything at once, decides in no time, binds late and hands work over without loss. Its rule is
list scheduling: at each event it goes through the waiting jobs in some order and plans each for where it would be done
first, be that on a machine that is busy or away, after the jobs planned there before it; jobs planned for a free slot
begin. A start counts what it adds to the times of the jobs beside it. The orders and the weight of that addition are
the variants (`VARIANTS`); the best of them for each trace is taken. It is not optimal: the least possible is not known,
`bounds` says what no scheduler can beat.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from outbid_bench.simulate.fleets import Absence
from outbid_bench.simulate.hosts import EMPTY, FLOOR, JOULES_PER_WH, Host, Run
from outbid_bench.simulate.traces import Task
from outbid_bench.simulate.world import World, finish_s, shared_s

LOOK = 60
"""Waiting jobs of each kind that it plans at each event."""


@dataclass(frozen=True, slots=True)
class Variant:
    """`shortest`: the order is by the least time a job could take, else by arrival. `others`: weight of the seconds
    that a start costs the jobs beside it. `returns`: jobs are planned for machines that are away, too.
    """

    shortest: bool
    others: float
    returns: bool = True


VARIANTS = (Variant(True, 1.0), Variant(True, 0.0), Variant(False, 1.0), Variant(True, 1.0, returns=False))


class Clairvoyant:
    name = "clairvoyant"

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.waiting: dict[str, list[tuple[Task, float]]] = {}
        """By capability: tasks, with the fraction that is done already."""
        self._best_s: dict[str, float] = {}
        self._soon = False

    def begin(self, world: World) -> None:
        self.world = world

    def arrive(self, task: Task) -> None:
        self._best_s[task.id] = min(host.alone_s(task) for host in self.world.able(task.capability))
        self._wait(task, 0.0)

    def left(self, host: Host, lost: Sequence[Run], absence: Absence) -> None:
        for run in lost:
            self._wait(run.task, run.fraction)
        self._look()

    def back(self, host: Host) -> None:
        self._look()

    def quiet(self, host: Host) -> None:
        self._look()

    def end(self) -> None:
        pass

    def _wait(self, task: Task, fraction: float) -> None:
        queue = self.waiting.setdefault(task.capability, [])
        queue.append((task, fraction))
        if self.variant.shortest:
            queue.sort(key=lambda item: self._best_s[item[0].id] * (1 - item[1]))
        self._look()

    def _look(self) -> None:
        """Once all that happens at this moment has happened."""
        if not self._soon:
            self._soon = True
            self.world.loop.call_soon(self._plan)

    def _plan(self) -> None:
        self._soon = False
        for capability, queue in self.waiting.items():
            if queue:
                self._plan_kind(capability, queue)

    def _plan_kind(self, capability: str, queue: list[tuple[Task, float]]) -> None:
        hosts = [host for host in self.world.able(capability) if self.variant.returns or host.up]
        if not hosts:
            return
        places = [_Place(host, capability) for host in hosts]
        started = []
        for item in queue[:LOOK]:
            task, fraction = item
            place = min(places, key=lambda place: place.cost_s(task, fraction, self.variant.others))
            if place.now:
                started.append(item)
                self.world.start(place.host, task, self._ended(place.host), fraction)
                place.refresh()
            else:
                place.reserve(task, fraction)
            if not any(place.now for place in places):
                break
        for item in started:
            queue.remove(item)

    def _ended(self, host: Host) -> Callable[[Run], None]:
        def ended(run: Run) -> None:
            self.world.done(run, host)
            self._look()

        return ended


class _Place:
    """One kind of work on one host while a plan is made: when its slots will be free, in seconds from now."""

    def __init__(self, host: Host, capability: str) -> None:
        self.host = host
        self.capability = capability
        self.slots: list[float] = []
        self.refresh()

    def refresh(self) -> None:
        """From what is true now; what was planned here before is forgotten, which is none: jobs begin in order."""
        host, engine = self.host, self.host.engine(self.capability)
        assert engine is not None
        now_s = host.loop.time()
        wait_s = _opens_s(host, now_s)
        busy = [finish for finish in _remaining(host, self.capability)] if wait_s == 0 else []
        self.slots = [*[wait_s] * (engine.slots - len(busy)), *busy]
        heapq.heapify(self.slots)
        self.load_s = 0.0 if host.warm(self.capability) and wait_s == 0 else engine.load_s
        self.crowd = 1.0 + engine.crowding * (engine.slots - 1)

    @property
    def now(self) -> bool:
        """Whether the next job planned here could begin at once."""
        return self.slots[0] <= 0.0 and self.host.free(self.capability) > 0

    def cost_s(self, task: Task, fraction: float, others: float) -> float:
        if not self.now:
            return self.slots[0] + self._later_s(task, fraction)
        takes_s = finish_s(self.host, task, fraction)
        if takes_s > _closes_s(self.host, self.host.loop.time()):
            return math.inf
        return takes_s + others * shared_s(self.host, task, fraction)[1]

    def reserve(self, task: Task, fraction: float) -> None:
        heapq.heapreplace(self.slots, self.slots[0] + self._later_s(task, fraction))

    def _later_s(self, task: Task, fraction: float) -> float:
        return self.load_s + self.host.alone_s(task, fraction) * self.crowd


def _remaining(host: Host, capability: str) -> list[float]:
    """Seconds until each run of that kind ends, about: as if the others stayed."""
    host.advance()
    engines = len({run.task.capability for run in host.running}) or 1
    runs = [run for run in host.running if run.task.capability == capability]
    return [run.left_s * engines * (1 + run.engine.crowding * (len(runs) - 1)) for run in runs]


def _opens_s(host: Host, now_s: float) -> float:
    """Seconds until it takes work; 0 if it does now."""
    if host.up and not host.quiet:
        return 0.0
    ends = [a.to_s for a in host.plan.absences if a.from_s <= now_s < a.to_s]
    ends += [to for begin, to in host.plan.quiet if begin <= now_s < to]
    ends += [to for begin, to in host.plan.unplugged if begin <= now_s < to]
    return max(1e-6, max(ends) - now_s) if ends else math.inf


def _closes_s(host: Host, now_s: float) -> float:
    """Seconds until it leaves, or its battery is at the floor with work on it."""
    leaves = [a.from_s - now_s for a in host.plan.absences if a.from_s > now_s]
    machine = host.plan.machine
    if host.on_battery and machine.battery_wh:
        plugged = [to - now_s for begin, to in host.plan.unplugged if begin <= now_s < to]
        lasts_s = (host.charge - max(FLOOR, EMPTY)) * machine.battery_wh * JOULES_PER_WH / machine.busy_w
        if not plugged or lasts_s < plugged[0]:
            leaves.append(lasts_s)
    return min(leaves, default=math.inf)
