"""Durable jobs on a LAN of network namespaces: machines lose their power, and the network between two of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from outbid import Mesh
from outbid_contracts.messages import JobRecord
from outbid_contracts.policy import Policy
from tests.acceptance.test_lan import whole
from tests.lan import Host, Lan, LanNode, lan, unavailable
from tests.traces import Traces

WHY_NOT = unavailable()
pytestmark = [pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or ""), pytest.mark.slow]

ECHO = "test.echo"
ELSEWHERE_S = 6.0
"""The aim is four seconds (the benchmark has the figures); a machine shared with others may be late."""


class Three:
    """Hosts a, b and c with a node each. A test may hurt them; the next one gets them whole again."""

    def __init__(self, net: Lan, traces: Traces) -> None:
        self.net = net
        self.traces = traces
        flags = traces.flags("node.always_on=false")
        self.hosts = [net.host(name) for name in "abc"]
        self.a, self.b, self.c = self.nodes = [host.node("one", *flags) for host in self.hosts]

    async def whole(self) -> None:
        self.net.heal()
        for host, node in zip(self.hosts, self.nodes, strict=True):
            host.plug()
            if node.process is None or node.process.poll() is not None:
                node.spawn()
        await whole(self.nodes)

    def split(self, *groups: list[Host]) -> None:
        self.traces.notes.note("cut", nodes=[node.local.node for node in self.nodes])
        self.net.split(*groups)

    def heal(self) -> None:
        self.net.heal()
        self.traces.notes.note("healed", nodes=[node.local.node for node in self.nodes])


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    folder = tmp_path_factory.mktemp("durable-lan")
    traces = Traces(folder)
    with lan(folder) as net:
        yield Three(net, traces)
        traces.assert_lawful(tolerance_s=10)


@pytest.fixture
async def three(started: Three) -> Three:
    await started.whole()
    return started


async def at(node: LanNode, work: Callable[[Mesh], Awaitable[Any]]) -> Any:
    """What `work` gives with a client on that host."""

    async def inside() -> Any:
        async with Mesh(state=node.state) as mesh:
            return await work(mesh)

    return await node.host.call(inside)


async def submit(node: LanNode, text: str, delay_s: float, prefer: LanNode) -> str:
    params, policy = {"text": text, "delay_s": delay_s}, Policy(prefer=(prefer.name,))
    job: str = await at(node, lambda mesh: _id(mesh, params, policy))
    return job


async def _id(mesh: Mesh, params: dict[str, Any], policy: Policy) -> str:
    return (await mesh.submit(ECHO, params, policy=policy)).id


async def text_of(node: LanNode, job: str) -> str:
    result: dict[str, Any] = await at(node, lambda mesh: mesh.attach(job).result(60))
    return str(result["text"])


async def test_a_job_whose_machine_loses_its_power_runs_elsewhere(three: Three) -> None:
    job = await submit(three.a, "dark", 1.0, three.b)
    await three.traces.until("started", job)
    since = time.monotonic_ns()
    three.traces.killed(three.b)
    three.b.host.power_cut()
    again = await three.traces.until("started", job, 2)
    took_s = (again["mono"] - since) / 1e9
    three.traces.notes.note("measured", after="power cut", seconds=took_s)
    assert took_s < ELSEWHERE_S
    assert await text_of(three.c, job) == "dark"


async def test_a_machine_that_lost_its_power_goes_on_with_its_jobs(three: Three) -> None:
    """Those it owned: one ran on itself, one elsewhere, one waits for them."""
    here, there = await submit(three.b, "here", 1.0, three.b), await submit(three.b, "there", 1.0, three.c)
    after = await at(three.b, lambda mesh: _after(mesh, here, there))
    for job in (here, there):
        await three.traces.until("started", job)
    three.traces.killed(three.b)
    three.b.host.power_cut()
    await whole([three.a, three.c])
    await three.whole()
    assert [await text_of(three.a, job) for job in (here, there, after)] == ["here", "there", "after"]


async def _after(mesh: Mesh, *jobs: str) -> str:
    return (await mesh.submit(ECHO, {"text": "after"}, after=jobs)).id


async def test_both_sides_of_a_cut_serve_their_users_and_the_job_between_them_ends_once(three: Three) -> None:
    a, b, _ = three.hosts
    job = await submit(three.a, "between", 1.5, three.b)
    await three.traces.until("started", job)
    three.split([a, three.hosts[2]], [b])
    minority = await submit(three.b, "alone", 0.1, three.b)
    assert await text_of(three.b, minority) == "alone"
    again = await three.traces.until("started", job, 2)
    assert again["node"] != three.b.local.node
    assert await text_of(three.a, job) == "between"
    await three.traces.until("stopped", job, 2)
    three.heal()
    refused = await three.traces.until("settled", job, 2, within_s=30)
    assert not refused["accepted"], three.traces.told(job)
    await three.whole()
    assert await text_of(three.b, job) == "between"
    assert await text_of(three.c, minority) == "alone"


async def test_a_cut_that_heals_in_time_costs_nothing(three: Three) -> None:
    a, b, c = three.hosts
    job = await submit(three.a, "blink", 4.0, three.b)
    await three.traces.until("started", job)
    three.split([a, c], [b])
    await asyncio.sleep(1.0)  # less than three heartbeats
    three.heal()
    assert await text_of(three.c, job) == "blink"
    record: JobRecord = await at(three.a, lambda mesh: mesh.job(job))
    assert len(record.attempts) == 1, three.traces.told(job)
