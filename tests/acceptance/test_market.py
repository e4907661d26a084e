"""Waiting for a better node, fair shares and quotas, with real daemons."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from outbid import Mesh, Policy
from outbid_contracts.errors import Busy
from outbid_node.config_sections import default_mesh
from tests.fleet import TEST_CAPABILITY, Fleet, NodeProcess, eventually, fleet, mesh_of

ECHO = "test.echo"
FASTEST = Policy(goal="fastest")


def settings(*chosen: str) -> Sequence[str]:
    return (*TEST_CAPABILITY, *(word for setting in chosen for word in ("--set", setting)))


# -- waiting for a better node ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A quick node and one that takes ten times as long, one slot each, and they know. The slow one is asked."""

    async def start(nodes: Fleet) -> None:
        for name, pace in (("slow", 10.0), ("quick", 1.0)):
            nodes.add(name, *settings(f"test.pace={pace}", "test.slots=1", "node.always_on=false"))
        await asyncio.gather(*(node.until_up() for node in nodes.nodes))
        await nodes.until_whole()
        async with mesh_of(nodes.nodes[0]) as mesh:
            await asyncio.gather(teach(mesh, "slow", 0.05), teach(mesh, "quick", 0.5))

    with fleet(tmp_path_factory.mktemp("market")) as nodes:
        asyncio.run(start(nodes))
        yield nodes


async def teach(mesh: Mesh, name: str, delay_s: float) -> None:
    """Jobs of half a second each there, so that what a busy machine adds to them is small beside that."""
    for _ in range(6):
        assert (await run(mesh, delay_s, Policy(prefer=(name,))))["name"] == name


async def run(mesh: Mesh, delay_s: float, policy: Policy = FASTEST, job: str | None = None) -> dict[str, Any]:
    done: dict[str, Any] = await mesh.run(
        ECHO, {"text": "x", "delay_s": delay_s}, policy=policy, job=job, timeout_s=120
    )
    return done


async def until_running(mesh: Mesh, job: str) -> None:
    async def running() -> bool:
        return any(record.id == job and record.state == "running" for record in (await mesh.jobs()).jobs)

    await eventually(running, 20, f"{job} does not run")


async def test_jobs_wait_for_the_quick_node_rather_than_take_the_slow_one_at_once(pair: Fleet) -> None:
    async with mesh_of(pair.nodes[0]) as mesh:
        first = asyncio.create_task(run(mesh, 1.0, job="first"))
        await until_running(mesh, "first")
        behind = [asyncio.create_task(run(mesh, 1.0, job=f"behind-{n}")) for n in range(3)]
        done = await asyncio.gather(first, *behind)
        assert [one["name"] for one in done] == ["quick"] * 4
        sheets = [(await mesh.job(f"behind-{n}")).sheets[-1] for n in range(3)]
    assert all(sheet.waited_s > 0.2 for sheet in sheets)
    told = " ".join(sheet.waited_for for sheet in sheets)
    assert "quick is expected free in" in told
    assert "sooner than slow" in told


async def test_the_slow_node_takes_what_would_wait_longer_than_it_needs(pair: Fleet) -> None:
    """The quick one needs 8.4 s for all of them, the slow one 6 s for one."""
    async with mesh_of(pair.nodes[0]) as mesh:
        done = await asyncio.gather(*(run(mesh, 0.6) for _ in range(14)))
    names = [one["name"] for one in done]
    assert 1 <= names.count("slow") <= 3


async def test_who_waits_for_a_node_that_dies_goes_elsewhere(pair: Fleet) -> None:
    slow, quick = pair.nodes
    async with mesh_of(slow) as mesh:
        first = asyncio.create_task(run(mesh, 2.0, Policy(goal="fastest", avoid=("slow",)), job="lost"))
        await until_running(mesh, "lost")
        second = asyncio.create_task(run(mesh, 0.5, job="elsewhere"))
        await eventually(lambda: waiting(mesh, "elsewhere"), 10, "the second job does not wait")
        quick.kill()
        await mesh.cancel("lost")
        assert (await second)["name"] == "slow"
        await asyncio.wait([first])
    quick.spawn()
    await quick.until_up()
    await pair.until_whole()


async def waiting(mesh: Mesh, job: str) -> bool:
    return any(record.id == job and record.state == "waiting" for record in (await mesh.jobs()).jobs)


# -- shares and quotas -----------------------------------------------------------------------------------------------


async def test_a_flood_of_one_submitter_delays_anothers_single_job_by_about_a_job(tmp_path: Path) -> None:
    with fleet(tmp_path) as nodes:
        nodes.mesh = default_mesh()  # the one that `outbid creds` makes credentials for, with a key of its own here
        node = nodes.add("one", *settings("test.slots=2"))
        await node.until_up()
        ann, bob = (creds(node, name, tmp_path) for name in ("ann", "bob"))
        async with Mesh(node.local.url, creds=ann) as flooding, Mesh(node.local.url, creds=bob) as single:
            ended: list[str] = []
            flood = [asyncio.create_task(note(run(flooding, 0.1), "ann", ended)) for _ in range(300)]
            await eventually(lambda: len(ended) >= 10, 30, "the flood does not run")
            before = len(ended)
            await note(run(single, 0.1), "bob", ended)
            assert ended.index("bob") - before <= 8, "two run, two go, and what ended while the request was on its way"
            for task in flood:
                task.cancel()
            await asyncio.wait(flood)


async def note(job: Any, who: str, ended: list[str]) -> None:
    await job
    ended.append(who)


def creds(node: NodeProcess, name: str, folder: Path) -> Path:
    file = folder / f"{name}.creds"
    environment = os.environ | {"OUTBID_KEYRING": str(node.state.with_name("keyring"))}
    command = [sys.executable, "-m", "outbid_node", "creds", "--state", str(node.state), "--name", name]
    subprocess.run([*command, "--out", str(file)], env=environment, check=True, capture_output=True)
    return file


async def test_a_submitter_has_no_more_jobs_running_and_hands_in_no_more_than_its_quotas(tmp_path: Path) -> None:
    with fleet(tmp_path) as nodes:
        node = nodes.add("one", *settings("quotas.max_running=1", "quotas.jobs_per_hour=4"))
        await node.until_up()
        async with mesh_of(node) as mesh:
            first, second, third = (asyncio.create_task(run(mesh, 0.5, job=name)) for name in ("a", "b", "c"))
            await until_running(mesh, "a")
            assert await waiting(mesh, "b")
            assert await waiting(mesh, "c")
            await asyncio.gather(first, second, third)
            starts = [(await mesh.job(name)).attempts[-1] for name in ("a", "b", "c")]
            assert all(one.started_ms >= (before.ended_ms or 0) for before, one in pairwise(starts))
            await mesh.submit(ECHO, {"text": "x"})
            with pytest.raises(Busy, match="jobs_per_hour"):
                await run(mesh, 0.0)
            with pytest.raises(Busy, match="jobs_per_hour"):
                await mesh.submit(ECHO, {"text": "x"})
