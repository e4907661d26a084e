"""Between equal nodes no job waits while an able slot idles, and no node runs more than its slots: with two, five and
twenty nodes, several owners that compete, and short jobs that wait in two ways, durable ones and callers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from statistics import median

import pytest

from outbid import Mesh
from outbid.chaos.history import check
from outbid_contracts.policy import Policy
from tests.fleet import Fleet, NodeProcess, fleet, mesh_of
from tests.traces import Traces, overruns, utilisation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ECHO = "test.echo"
AT_ONCE = 4
"""Daemons started at a time."""


@pytest.mark.parametrize(
    ("count", "owners", "slots", "jobs", "shortest_s", "idle_s"),
    [(2, 2, 2, 40, 0.05, 1.0), (5, 3, 2, 50, 0.05, 1.0), (20, 4, 1, 24, 0.8, 3.0)],
    ids=["two", "five", "twenty"],
)
async def test_no_job_waits_while_an_able_slot_idles(
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    count: int,
    owners: int,
    slots: int,
    jobs: int,
    shortest_s: float,
    idle_s: float,
) -> None:
    """`jobs` of each owner, half of them durable. Twenty nodes on one machine are more than it can serve quickly, so
    their jobs are longer; `idle_s` is what its noise is allowed, longer by as much as other programs slow it down. With
    twenty that is also the second of a job that waits for another node by choice: sharing two cores, they do not
    measure themselves as equal.
    """
    traces = Traces(tmp_path)
    with fleet(tmp_path) as nodes:
        await grow(nodes, count, traces.flags(f"test.slots={slots}", "node.always_on=false"))
        async with AsyncExitStack() as stack:
            meshes = [await stack.enter_async_context(mesh_of(node)) for node in nodes.nodes[:owners]]
            await warm(meshes[0], nodes.nodes)
            begun = len(traces.events())
            async with slowness() as slower:
                await asyncio.gather(*(flood(mesh, Random(n), jobs, shortest_s) for n, mesh in enumerate(meshes)))
    events = traces.events()[begun:]
    assert len([event for event in events if event["what"] == "started"]) >= owners * jobs
    assert not overruns(events)
    used = utilisation(events, {node.name: slots for node in nodes.nodes})
    record_property("share of the slots' time used", round(used, 2))
    broken = check(events, {}, tolerance_s=idle_s * max(1.0, median(slower)))
    assert not broken, "\n".join(map(str, broken[:5]))
    assert used > 0.4


@asynccontextmanager
async def slowness() -> AsyncIterator[list[float]]:
    """How many times as long as on a quiet machine a little work takes, looked at while the body runs."""
    found: list[float] = []

    async def look() -> None:
        while True:
            found.append(await asyncio.to_thread(stretched, 0.01))
            await asyncio.sleep(0.3)

    looking = asyncio.create_task(look())
    try:
        yield found
    finally:
        looking.cancel()


def stretched(cpu_s: float) -> float:
    """The time that so much CPU time takes, over that."""
    begun, used = time.perf_counter(), time.thread_time()
    while time.thread_time() < used + cpu_s:
        pass
    return (time.perf_counter() - begun) / cpu_s


async def grow(nodes: Fleet, count: int, flags: Sequence[str]) -> None:
    for start in range(0, count, AT_ONCE):
        some = [nodes.add(f"n{n}", *flags) for n in range(start, min(count, start + AT_ONCE))]
        await asyncio.gather(*(node.until_up(60) for node in some))
    await nodes.until_whole(60)


async def warm(mesh: Mesh, nodes: Sequence[NodeProcess]) -> None:
    """A runner at each node, one after the other: they are not what is looked at."""
    for node in nodes:
        policy = Policy(prefer=(node.name,))
        while (await mesh.run(ECHO, {"text": "warm"}, policy=policy, timeout_s=60))["name"] != node.name:
            pass


async def flood(mesh: Mesh, random: Random, jobs: int, shortest_s: float) -> None:
    wanted = [{"text": str(n), "delay_s": shortest_s + random.uniform(0.0, 0.25)} for n in range(jobs)]
    durable = await mesh.submit_many([{"capability": ECHO, "params": params} for params in wanted[::2]])
    called = [mesh.run(ECHO, params, timeout_s=100) for params in wanted[1::2]]
    results = await asyncio.gather(*(job.result(100) for job in durable), *called)
    assert [result["text"] for result in results] == [params["text"] for params in [*wanted[::2], *wanted[1::2]]]
