"""Jobs that take no time, many at once: what they wait for is their owner's daemon, which is the same wherever they
run.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from outbid import Mesh
from outbid_contracts.messages import Presence
from outbid_contracts.policy import Policy
from tests.fleet import eventually, fleet, mesh_of

pytestmark = pytest.mark.timeout(300)

NOOP = "test.noop"
IN_FLIGHT, JOBS = 64, 1200


async def test_a_busy_daemon_does_not_take_itself_for_a_slow_machine(tmp_path: Path) -> None:
    """Each of the jobs takes some ten milliseconds, of which its runner works for some ten microseconds."""
    with fleet(tmp_path) as nodes:
        await nodes.start("ada", "bob")
        async with mesh_of(nodes.node("ada")) as mesh:
            for name in ("ada", "bob"):
                await mesh.run(NOOP, {}, policy=Policy(prefer=(name,)), timeout_s=60)
            winners, each_s = await _flood(mesh)
            assert await _fixed_s(mesh, "ada") < each_s / 50
    assert winners["ada"] > 0.5 * winners.total()


async def _flood(mesh: Mesh) -> tuple[Counter[str], float]:
    """Who ran the jobs, and the mean of the seconds from each one's request to its answer."""
    winners: Counter[str] = Counter()
    seconds = 0.0

    async def caller() -> None:
        nonlocal seconds
        for _ in range(JOBS // IN_FLIGHT):
            begun = time.perf_counter()
            winners[(await mesh.run(NOOP, {}, timeout_s=60))["name"]] += 1
            seconds += time.perf_counter() - begun

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return winners, seconds / winners.total()


async def _fixed_s(mesh: Mesh, name: str) -> float:
    """What that node's next heartbeat says of a job that does nothing."""
    before = (await _presence(mesh, name)).seq

    async def next_one() -> Presence | None:
        presence = await _presence(mesh, name)
        return presence if presence.seq > before else None

    presence: Presence = await eventually(next_one, 30, f"{name} has no heartbeat")
    return next(offer.fixed_s for offer in presence.offers if offer.capability == NOOP)


async def _presence(mesh: Mesh, name: str) -> Presence:
    return next(node.presence for node in await mesh.nodes() if node.presence.name == name)
