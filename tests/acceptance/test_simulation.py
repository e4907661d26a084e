"""The simulator against real daemons: the same jobs on the same machines go to the same places in the same time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

from outbid import Mesh, Policy
from outbid_bench.simulate.clock import simulated
from outbid_bench.simulate.fleets import Plan
from outbid_bench.simulate.machines import Engine, Machine
from outbid_bench.simulate.mesh import SimulatedMesh
from outbid_bench.simulate.traces import Task
from outbid_bench.simulate.world import World
from tests.fleet import TEST_CAPABILITY, fleet, mesh_of

ECHO = "test.echo"
PACES = {"slow": 6.0, "quick": 1.0, "middle": 2.0}
"""How many times the asked seconds each takes; the first accepts the jobs."""

JOBS, SECONDS = 14, 0.5


def test_simulated_nodes_place_jobs_as_real_ones_do(tmp_path: Path) -> None:
    really, took_s = asyncio.run(_really(tmp_path))
    simulated_places, simulated_s = _simulated()
    assert sum(really.values()) == sum(simulated_places.values()) == JOBS
    for name in PACES:
        assert abs(really[name] - simulated_places[name]) <= 2, (really, simulated_places)
    assert 0.7 * simulated_s < took_s < 1.5 * simulated_s, (took_s, simulated_s)


async def _really(folder: Path) -> tuple[Counter[str], float]:
    """Where the jobs went, and their mean completion time. The nodes know their speed from a few jobs before."""
    with fleet(folder) as nodes:
        for name, pace in PACES.items():
            nodes.add(name, *TEST_CAPABILITY, "--set", f"test.pace={pace}", "--set", "test.slots=1")
        await asyncio.gather(*(node.until_up() for node in nodes.nodes))
        await nodes.until_whole()
        async with mesh_of(nodes.nodes[0]) as mesh:
            for name in PACES:
                for _ in range(5):
                    await _run(mesh, 0.05, Policy(goal="fastest", prefer=(name,)))
            done = await asyncio.gather(*(_run(mesh, SECONDS, Policy(goal="fastest")) for _ in range(JOBS)))
    return Counter(name for name, _ in done), sum(took_s for _, took_s in done) / JOBS


async def _run(mesh: Mesh, delay_s: float, policy: Policy) -> tuple[str, float]:
    began = time.monotonic()
    done = await mesh.run(ECHO, {"text": "x", "delay_s": delay_s}, policy=policy, timeout_s=120)
    return str(done["name"]), time.monotonic() - began


def _simulated() -> tuple[Counter[str], float]:
    plans = [Plan(name, _machine(name, pace), owner=name == "slow") for name, pace in PACES.items()]
    work = {"chunks": 1.0, "seconds": SECONDS}
    tasks = [Task(number, 2.0, ECHO, work, work, "ada") for number in range(JOBS)]
    with simulated() as loop:
        world = World(loop, plans, tasks, SimulatedMesh(1, "fastest", wrong=0.0), seed=1)
        for host in world.hosts:
            host.noise = lambda task, kind: 1.0
        loop.run_until_complete(world.run(limit_s=1000.0))
    results = list(world.results.values())
    return Counter(result.host for result in results), sum(result.took_s for result in results) / JOBS


def _machine(name: str, pace: float) -> Machine:
    return Machine(name, {ECHO: Engine({"chunks": 0.0001, "seconds": pace})}, idle_w=0, busy_w=0)
