"""How many jobs a second a fleet could do at most, by a linear program; load is a share of that.

Each machine divides its time among its kinds of work, at the best batch of each. With x the share of time that machine
m gives to kind c: maximise r, so that for each c the machines do r * share(c) jobs a second and none has more than the
time it is there. The program's duals, the worth of a second of each machine, also carry a bound (`bounds`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from outbid_bench.simulate.fleets import Plan
from outbid_bench.simulate.machines import Machine
from outbid_bench.simulate.traces import Work, mean_work


@dataclass(frozen=True, slots=True)
class Capacity:
    """`worth`: of a second of each kind of machine, in jobs of the mix."""

    per_s: float
    worth: Mapping[str, float]


def capacity(plans: Sequence[Plan], span_s: float) -> Capacity:
    return _capacity(plans, [plan.there_s(span_s) / span_s for plan in plans])


def capacities(plans: Sequence[Plan], span_s: float) -> Iterator[tuple[float, float, float]]:
    """(from, to, jobs a second) while the same machines are there."""
    edges = {0.0, span_s}
    for plan in plans:
        edges |= {t for absence in plan.absences for t in (absence.from_s, absence.to_s) if t < span_s}
        edges |= {t for quiet in plan.quiet for t in quiet if t < span_s}
    for from_s, to_s in itertools.pairwise(sorted(edges)):
        yield from_s, to_s, _capacity(plans, [float(plan.is_there(from_s)) for plan in plans]).per_s


def _capacity(plans: Sequence[Plan], shares: Sequence[float]) -> Capacity:
    """`shares`: of the time that each machine is there."""
    machines = {plan.machine.kind: plan.machine for plan in plans}
    there = dict.fromkeys(machines, 0.0)
    for plan, share in zip(plans, shares, strict=True):
        there[plan.machine.kind] += share
    work = mean_work()
    rows, limits, cells = _program(machines, there, work)
    goal = [0.0] * len(cells) + [1.0]
    per_s, duals = maximise(goal, rows, limits)
    return Capacity(per_s, dict(zip(machines, duals, strict=False)))


def _program(
    machines: Mapping[str, Machine], there: Mapping[str, float], work: Mapping[str, Work]
) -> tuple[list[list[float]], list[float], list[tuple[str, str]]]:
    cells = [(kind, name) for kind, machine in machines.items() for name in work if name in machine.engines]
    rows: list[list[float]] = []
    for kind in machines:
        rows.append([float(kind == of) for of, _ in cells] + [0.0])
    for name, units in work.items():
        rows.append([-_done(machines[kind], of, units) if of == name else 0.0 for kind, of in cells] + [1.0])
    return rows, [*there.values(), *[0.0] * len(work)], cells


def _done(machine: Machine, capability: str, units: Work) -> float:
    """Shares of the mix's work of that kind, per second. The fixed part of a job is left out."""
    engine = machine.engines[capability]
    return engine.most_at_once / sum(count * engine.rates[unit] for unit, count in units.items())


def maximise(
    goal: Sequence[float], rows: Sequence[Sequence[float]], limits: Sequence[float]
) -> tuple[float, list[float]]:
    """The most that goal·x can be with rows·x <= limits and x >= 0, and the duals of the rows. The simplex method on a
    tableau, Bland's rule against cycles; `limits` must not be negative. Raises ValueError if there is no most.
    """
    count, width = len(rows), len(goal)
    table = [[*row, *[float(i == j) for j in range(count)], limits[i]] for i, row in enumerate(rows)]
    last = [*[-value for value in goal], *[0.0] * count, 0.0]
    basis = list(range(width, width + count))
    while (column := next((j for j in range(width + count) if last[j] < -1e-12), None)) is not None:
        ratios = [(row[-1] / row[column], basis[i], i) for i, row in enumerate(table) if row[column] > 1e-12]
        if not ratios:
            raise ValueError("there is no limit to the goal")
        _, _, pivot = min(ratios)
        basis[pivot] = column
        scale = table[pivot][column]
        table[pivot] = [value / scale for value in table[pivot]]
        for row in [*(row for i, row in enumerate(table) if i != pivot), last]:
            if factor := row[column]:
                row[:] = [value - factor * of for value, of in zip(row, table[pivot], strict=True)]
    return last[-1], last[width : width + count]
