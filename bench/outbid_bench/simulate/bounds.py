"""What no scheduler whatever can beat, provably. Of two bounds of the mean completion time the higher counts.

Alone: each job has the best machine to itself, loaded, as soon as it comes, whether that machine is there or not.

Shared: give each second of machine m a worth w(m) >= 0 (any; the duals of `capacity` are good ones) and each job the
value v = min over m of w(m) * seconds(m) / most at once(m). Then no machine does more than w(m) of value a second, so
the fleet is no better than one machine of speed W = sum of w(m) over the machines that are there, which may also
divide and interrupt jobs. For one such machine the sum of completion times is least if the job with the least left
always runs (SRPT: Schrage 1968). It holds for every schedule of this simulation's physics, in which a machine's engines
share its time and k jobs on an engine advance together by at most `most_at_once`.

For the energy: a machine at work draws its extra watts and does at most `most_at_once` seconds' worth of a job alone a
second, so a job takes no less than the least over the machines of watts * seconds / most at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence

from outbid_bench.simulate.fleets import Plan
from outbid_bench.simulate.machines import Machine
from outbid_bench.simulate.traces import Task

Noise = Callable[[Task, str], float]


def least_mean_s(plans: Sequence[Plan], tasks: Sequence[Task], noise: Noise, worth: Mapping[str, float]) -> float:
    """No scheduler's mean completion time is below it."""
    machines = {plan.machine.kind: plan.machine for plan in plans}
    alone_s, jobs = 0.0, []
    for task in tasks:
        able = [machine for machine in machines.values() if task.capability in machine.engines]
        seconds = [m.engines[task.capability].alone_s(task.true) * noise(task, m.kind) for m in able]
        alone_s += min(seconds)
        value = min(
            worth[m.kind] * s / m.engines[task.capability].most_at_once for m, s in zip(able, seconds, strict=True)
        )
        jobs.append((task.arrives_s, value))
    return max(alone_s, srpt_s(jobs, list(_speeds(plans, worth)))) / len(tasks)


def least_energy_j(plans: Sequence[Plan], tasks: Sequence[Task], noise: Noise) -> float:
    """All work in full batches on the machine that is thriftiest at it."""
    machines = {plan.machine.kind: plan.machine for plan in plans}
    total = 0.0
    for task in tasks:
        able = [machine for machine in machines.values() if task.capability in machine.engines]
        total += min(_share_j(machine, task) * noise(task, machine.kind) for machine in able)
    return total


def _share_j(machine: Machine, task: Task) -> float:
    engine = machine.engines[task.capability]
    return machine.extra_w * engine.alone_s(task.true) / engine.most_at_once


def _speeds(plans: Sequence[Plan], worth: Mapping[str, float]) -> Iterator[tuple[float, float]]:
    """(from when, worth of all the machines that are there)."""
    at = {0.0} | {t for plan in plans for absence in plan.absences for t in (absence.from_s, absence.to_s)}
    for begin_s in sorted(at):
        there = (p for p in plans if not any(a.from_s <= begin_s < a.to_s for a in p.absences))
        yield begin_s, sum(worth[plan.machine.kind] for plan in there)


def srpt_s(jobs: Sequence[tuple[float, float]], speeds: Sequence[tuple[float, float]]) -> float:
    """The sum of completion times (from each arrival) of (arrival, size) on one machine, the least left first; its
    speed changes at the given times, and is above 0 in the end.
    """
    coming = sorted(jobs)
    changes = [*(begin_s for begin_s, _ in speeds[1:]), float("inf")]
    left: list[tuple[float, float]] = []
    total, at_s, index, era = 0.0, 0.0, 0, 0
    while index < len(coming) or left:
        if not left:
            at_s = max(at_s, coming[index][0])
        while index < len(coming) and coming[index][0] <= at_s:
            heapq.heappush(left, (coming[index][1], coming[index][0]))
            index += 1
        while changes[era] <= at_s:
            era += 1
        speed = speeds[era][1]
        size, came_s = heapq.heappop(left)
        until_s = min(changes[era], coming[index][0] if index < len(coming) else float("inf"))
        if speed > 0 and at_s + size / speed <= until_s:
            at_s += size / speed
            total += at_s - came_s
        else:
            heapq.heappush(left, (max(0.0, size - speed * (until_s - at_s)), came_s))
            at_s = until_s
    return total
