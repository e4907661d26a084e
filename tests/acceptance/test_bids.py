"""Do promises come true: three nodes of different speed learn their own, choose by it, and remember it."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from outbid import Mesh, Policy
from outbid_contracts.messages import Considered, JobRecord, Offer
from tests.fleet import TEST_CAPABILITY, Fleet, NodeProcess, eventually, fleet, mesh_of

PACES = {"quick": 1.0, "middle": 2.0, "slow": 4.0}
"""Node, and how many times as long as asked its work takes: they do not know it of themselves."""

CHUNKS = (1, 4, 2, 3, 1, 3)
DELAY_S = 0.06


@pytest_asyncio.fixture
async def paced(tmp_path: Path) -> AsyncIterator[Fleet]:
    """The three nodes, after each has run some jobs of different length."""
    with fleet(tmp_path) as running:
        for name, pace in PACES.items():
            running.add(name, *TEST_CAPABILITY, "--set", f"test.pace={pace}")
        for node in running.nodes:
            await node.until_up()
        await running.until_whole()
        async with mesh_of(running.nodes[-1]) as mesh:
            for number, chunks in enumerate((*CHUNKS, *CHUNKS)):
                for name in PACES:
                    await run(mesh, f"learn-{number}-{name}", chunks, Policy(prefer=(name,)))
        yield running


async def run(mesh: Mesh, job: str, chunks: int, policy: Policy) -> JobRecord:
    text = "x" * chunks
    await mesh.run("test.echo", {"text": text, "chunks": chunks, "delay_s": DELAY_S}, job=job, policy=policy)
    return await mesh.job(job)


def winner(record: JobRecord) -> Considered:
    return next(considered for considered in record.sheets[-1].bids if considered.bid.node == record.node)


async def test_promises_come_true_and_the_slow_node_does_not_win(paced: Fleet) -> None:
    async with mesh_of(paced.nodes[-1]) as mesh:
        for name in PACES:
            records = [
                await run(mesh, f"{name}-{n}", chunks, Policy(prefer=(name,))) for n, chunks in enumerate(CHUNKS)
            ]
            assert {winner(record).name for record in records} == {name}
            assert median_off(records) < 0.2
        free = [await run(mesh, f"free-{n}", chunks, Policy(goal="fastest")) for n, chunks in enumerate(CHUNKS)]
        assert [winner(record).name for record in free] == ["quick"] * len(CHUNKS)


def median_off(records: Sequence[JobRecord]) -> float:
    """Of |promised - took| / took."""
    off = []
    for record in records:
        assert record.took_s is not None
        off.append(abs(winner(record).bid.finish_s - record.took_s) / record.took_s)
    return statistics.median(off)


async def test_what_was_learnt_is_known_again_after_a_restart(paced: Fleet) -> None:
    slow = paced.nodes[-1]
    before = await offer(slow)
    assert slow.stop() == 0
    slow.spawn()
    await slow.until_up()

    async def recalled() -> Offer | None:
        after = await offer(slow)
        return after if "jobs" in after.rests_on else None

    after: Offer = await eventually(recalled, 20, "nothing of what was learnt came back")
    assert 3 < before.rates["seconds"] < 5
    assert 3 < after.rates["seconds"] < 5


async def offer(node: NodeProcess, capability: str = "test.echo") -> Offer:
    """As this node itself presents it."""
    async with mesh_of(node) as mesh:

        async def own() -> Offer | None:
            views = [view for view in await mesh.nodes() if view.presence.node == mesh.local]
            return next((o for view in views for o in view.presence.offers if o.capability == capability), None)

        found: Offer = await eventually(own, 10, "the node does not list itself")
        return found


@pytest.mark.model
async def test_a_calibration_on_demand_tells_what_it_found_and_is_remembered(tmp_path: Path) -> None:
    with fleet(tmp_path) as running:
        (node,) = await running.start("a")
        nothing = await calibrate(node, "--capability", "test.echo")
        assert nothing["found"][0]["error"] == "there are no trials for it"
        (found,) = (await calibrate(node, "--capability", "llm.chat"))["found"]
        assert found["rests_on"] == "prior"
        assert all(found["shown"][unit] > 0 for unit in ("load_s", "prompt_tokens_s", "new_tokens_s"))
        assert node.stop() == 0
        node.spawn()
        await node.until_up()

        async def remembered() -> bool:
            return (await offer(node, "llm.chat")).rests_on == "calibration"

        await eventually(remembered, 20, "the calibration is forgotten")


async def calibrate(node: NodeProcess, *words: str) -> Any:
    command = [sys.executable, "-m", "outbid", "calibrate", "--json", "--state", str(node.state), *words]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    told, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0
    return json.loads(told)
