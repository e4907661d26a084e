"""One run, chosen on the command line, told in full."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from outbid_bench.options import Simulation
from outbid_bench.report import Section, Table
from outbid_bench.simulate.runs import HOME, Figures, Machine, Presence, Setup, outbid, simulate

SHOWN = 40
"""Machines that are listed; of a larger fleet those that did most."""


def setup_of(chosen: Simulation) -> Setup:
    return Setup(chosen.nodes, chosen.load, chosen.seed, chosen.bursty, presence(chosen.nodes), span_s(chosen.nodes))


def presence(nodes: int) -> Presence:
    """In a lab those that leave and those that come are about as many, so the arrivals need take no notice."""
    return "come and go" if nodes == HOME else "go and overload"


def span_s(nodes: int) -> float:
    """For how long jobs come: one to three thousand of them."""
    return 1800.0 if nodes == HOME else max(10.0, 7_500.0 / nodes)


async def section(pool: Executor, chosen: Simulation) -> Section:
    setup = setup_of(chosen)
    figures = await asyncio.get_running_loop().run_in_executor(pool, simulate, setup, outbid(chosen.policy))
    about = (
        f"{setup.nodes} nodes at {setup.load:.0%} load, seed {setup.seed}, policy {chosen.policy}: {figures.jobs} jobs "
        f"in {setup.span_s:g} s{', in bursts' * setup.bursty}; the fleet could do {figures.per_s:.3g} a second."
    )
    found = Section("simulate", "Placement, one simulated run", about)
    found.tables = [Table("The jobs", ("what", "figure"), _rows(figures)), _machines(figures)]
    return found


def _rows(figures: Figures) -> list[tuple[str, str]]:
    return [
        ("mean completion time", f"{figures.mean_s:.2f} s"),
        ("95th percentile", f"{figures.p95_s:.2f} s"),
        ("mean slowdown against alone on the best machine", f"{figures.slowdown:.2f}x"),
        ("no scheduler's mean can be below", f"{figures.least_s:.2f} s"),
        ("no scheduler's energy can be below", f"{figures.least_j / 1000:.1f} kJ"),
        ("missed deadlines, of the jobs that have one", f"{figures.late:.1%}"),
        ("starts where another machine would have been done sooner by a tenth", f"{figures.wrong:.1%}"),
        ("energy of the work", f"{figures.energy_j / 1000:.1f} kJ"),
        ("electricity and rent of it", f"{figures.cost_usd:.3f} dollars"),
        ("attempts lost with a machine", f"{figures.again}"),
        ("refused awards", f"{figures.refusals}"),
        ("deciding, processor time", f"{figures.decision_us:.0f} µs a job"),
        ("a heartbeat heard, processor time", f"{figures.beat_us:.0f} µs"),
    ]


def _machines(figures: Figures) -> Table:
    columns = ("node", "machine", "jobs", "at work", "energy", "lowest charge at work")
    most = sorted(figures.machines, key=lambda machine: -machine.jobs)[:SHOWN]
    left_out = len(figures.machines) - len(most)
    notes = (f"{left_out} more that did less.",) if left_out else ()
    return Table("The machines", columns, [_row(machine) for machine in most], notes)


def _row(machine: Machine) -> tuple[str, ...]:
    charge = f"{machine.lowest_charge:.0%}" if machine.lowest_charge < 1 else ""
    busy, energy = f"{machine.busy:.0%}", f"{machine.energy_j / 1000:.1f} kJ"
    return machine.name, machine.kind, str(machine.jobs), busy, energy, charge
