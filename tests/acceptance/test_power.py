"""Joules through the whole mesh: what attempts took arrives at their owner, and together is what was drawn for them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from outbid_contracts.policy import Policy
from tests.fleet import TEST_CAPABILITY, Fleet, eventually, fleet, mesh_of

CORES = os.cpu_count() or 1
W_PER_CORE = 100.0
USD_PER_KWH = 0.36
"""So that a joule is 1e-7 dollars."""
WATTS = ("power.idle_w=10", f"power.busy_w={10 + W_PER_CORE * CORES}", f"power.usd_per_kwh={USD_PER_KWH}")
FLAGS = (*TEST_CAPABILITY, *(word for setting in WATTS for word in ("--set", setting)))


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path) as running:
        yield running


async def test_two_jobs_at_once_are_charged_what_their_runner_drew_and_their_owner_knows(nodes: Fleet) -> None:
    """With declared watts a runner draws its processor seconds times the watts of a core, whatever else runs here."""
    owner, _ = await nodes.start("owner", "worker", flags=FLAGS)
    there = Policy(prefer=("worker",))
    async with mesh_of(owner) as mesh:
        first = await mesh.run("test.echo", {"text": "hi"}, policy=there, timeout_s=60)
        assert first["name"] == "worker"
        runner = psutil.Process(first["pid"])
        before = _cpu_s(runner)
        burns = {"text": "ab", "chunks": 12, "burn_s": 0.15}
        jobs = [mesh.run("test.echo", burns, policy=there, timeout_s=120) for _ in range(2)]
        results = await asyncio.gather(*jobs)
        drawn_j = (_cpu_s(runner) - before) * W_PER_CORE
        assert {result["name"] for result in results} == {"worker"}
        attempts = [(await mesh.job(result["job"])).attempts[-1] for result in results]
    joules = [attempt.energy_j or 0.0 for attempt in attempts]
    assert sum(joules) == pytest.approx(drawn_j, rel=0.25)
    assert min(joules) > 0.2 * sum(joules)
    for attempt in attempts:
        assert attempt.cost_usd == pytest.approx((attempt.energy_j or 0.0) * 1e-7)


async def test_a_node_tells_what_it_draws_and_remembers_over_a_restart_what_its_jobs_drew(nodes: Fleet) -> None:
    (node,) = await nodes.start("node", flags=FLAGS)

    async def watts() -> float:
        """In the bids for such a job."""
        async with mesh_of(node) as mesh:
            (view,) = await mesh.nodes()
        found = view.presence.resources
        assert found.power_w is None or (found.power_w >= 10 and found.power_source != "")
        offers = {offer.capability: offer for offer in view.presence.offers}
        return offers["test.echo"].watts if found.power_w else 0.0

    guess = await eventually(watts, 30, "no watts in its presence")
    async with mesh_of(node) as mesh:
        await mesh.run("test.echo", {"text": "a", "chunks": 15, "delay_s": 0.2}, timeout_s=60)
    node.stop()
    node.spawn()
    await node.until_up()
    await eventually(lambda: _less(watts, guess / 2), 30, "an idle job is still thought to draw much")


async def _less(number: Callable[[], Awaitable[float]], most: float) -> bool:
    return 0 < await number() < most


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
