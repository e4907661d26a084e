"""A machine that stays away: the node that keeps copies of its durable jobs takes them over, once, and the machine that
returns accepts that.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random

import nats
import psutil
import pytest
from nats.js.errors import NotFoundError

from outbid import Mesh
from outbid.jobs import Job
from outbid_contracts.errors import OutbidError
from outbid_contracts.policy import Policy
from tests.fleet import Fleet, NodeProcess, eventually, fleet, mesh_of
from tests.traces import Traces

pytestmark = pytest.mark.slow

ECHO = "test.echo"
ADOPT_AFTER_S = 3


class Group:
    """Node a owns jobs; others that are always on may keep copies of them."""

    def __init__(self, nodes: Fleet, folder: Path) -> None:
        self.fleet = nodes
        self.traces = Traces(folder)

    async def start(self, names: str = "ab", *settings: str) -> list[NodeProcess]:
        always = ("node.always_on=true", f"durable.adopt_after_s={ADOPT_AFTER_S}", "limits.grace_s=0.2", *settings)
        return await self.fleet.start(*names, flags=self.traces.flags(*always))

    def kill(self, node: NodeProcess) -> None:
        self.traces.killed(node)
        node.kill()

    async def again(self, node: NodeProcess) -> None:
        node.spawn()
        await node.until_up()
        await self.fleet.until_whole()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    with fleet(tmp_path) as nodes:
        made = Group(nodes, tmp_path)
        yield made
        made.traces.assert_lawful(tolerance_s=1000)


def patient(node: NodeProcess) -> Mesh:
    return Mesh(state=node.state, owner_away_s=60)


async def copied(keeper: NodeProcess, owner: str, jobs: Sequence[Job]) -> None:
    """Until the keeper has copies of them on its disk."""
    client = await nats.connect(keeper.local.url, user_credentials=keeper.node_creds, inbox_prefix=b"_INBOX_node")
    bucket = f"MIRROR_{keeper.local.node}"
    stream = client.jetstream(domain=keeper.local.node)

    async def is_there(job: Job) -> bool:
        with suppress(NotFoundError):
            return bool((await stream.get_last_msg(f"KV_{bucket}", f"$KV.{bucket}.job.{owner}.{job.id}")).data)
        return False

    async def all_there() -> bool:
        return all([await is_there(job) for job in jobs])

    try:
        await eventually(all_there, 20, f"{keeper.name} has no copies:\n{keeper.text()}")
    finally:
        await client.close()


async def taken_over(group: Group, jobs: Sequence[Job]) -> None:
    for job in jobs:
        await group.traces.until("adopted", job.id, within_s=30)


async def texts(mesh: Mesh, jobs: Sequence[Job]) -> list[str]:
    results = await asyncio.gather(*(mesh.attach(job.id).result(60) for job in jobs))
    return [str(result["text"]) for result in results]


def child(node: NodeProcess, role: str) -> psutil.Process:
    marks = {"ledger": "/ledger", "router": "/router"}
    found = psutil.Process(node.pid).children(recursive=True)
    return next(process for process in found if marks[role] in " ".join(process.cmdline()))


async def test_waiting_and_running_jobs_of_a_dead_owner_are_done_by_its_keeper(group: Group) -> None:
    a, b = await group.start("ab")
    owner = a.local.node
    async with mesh_of(a) as mesh:
        running = [
            await mesh.submit(ECHO, {"text": f"r{n}", "delay_s": 2.0}, policy=Policy(prefer=("b",))) for n in "12"
        ]
        waiting = [await mesh.submit(ECHO, {"text": f"w{n}"}, delay_s=4.0) for n in "123"]
        await copied(b, owner, [*running, *waiting])
    group.kill(a)
    await taken_over(group, [*running, *waiting])
    async with patient(b) as mesh:
        assert await texts(mesh, running) == ["r1", "r2"]
        assert await texts(mesh, waiting) == ["w1", "w2", "w3"]
        record = await mesh.job(running[0].id)
        assert (record.owner, record.state) == (b.local.node, "done")


async def test_owner_that_returns_gives_up_what_was_adopted(group: Group) -> None:
    a, b = await group.start("ab")
    owner = a.local.node
    async with mesh_of(a) as mesh:
        jobs = [await mesh.submit(ECHO, {"text": f"t{n}"}, job=f"mine-{n}", delay_s=3600) for n in "12"]
        await copied(b, owner, jobs)
    group.kill(a)
    await taken_over(group, jobs)
    await group.again(a)
    await group.traces.until("moved", "mine-1")
    async with mesh_of(a) as mesh:
        known = await mesh.submit(ECHO, {"text": "t1"}, job="mine-1")
        assert (known.known, known.owner) == (True, b.local.node)
        fresh = await mesh.submit(ECHO, {"text": "new"}, delay_s=1.0)
        assert fresh.owner == owner
        await copied(b, owner, [fresh])
        assert await texts(mesh, [fresh]) == ["new"]
        for job in jobs:
            await mesh.cancel(job.id)


async def test_attempt_that_was_done_before_the_owner_froze_cannot_end_its_job_after_adoption(group: Group) -> None:
    a, b = await group.start("ab")
    owner = a.local.node
    async with mesh_of(a) as mesh:
        job = await mesh.submit(ECHO, {"text": "once", "delay_s": 2.0}, policy=Policy(prefer=("a",)))
        await copied(b, owner, [job])
        await group.traces.until("started", job.id)
    group.traces.notes.note("frozen", node=owner)
    psutil.Process(a.pid).suspend()
    await taken_over(group, [job])
    psutil.Process(a.pid).resume()
    group.traces.notes.note("resumed", node=owner)
    async with patient(b) as mesh:
        assert await texts(mesh, [job]) == ["once"]
    await group.traces.until("moved", job.id)
    assert group.traces.count("ended", job.id) == 1
    async with patient(a) as mesh:
        await group.fleet.until_whole()
        assert await texts(mesh, [job]) == ["once"]


async def test_keeper_restarted_before_its_owner_dies_still_takes_over(group: Group) -> None:
    a, b = await group.start("ab")
    owner = a.local.node
    async with mesh_of(a) as mesh:
        jobs = [await mesh.submit(ECHO, {"text": f"t{n}"}, delay_s=8) for n in "123"]
        await copied(b, owner, jobs)
    group.kill(b)
    group.kill(a)
    b.spawn()
    await b.until_up()
    await taken_over(group, jobs)
    async with patient(b) as mesh:
        assert await texts(mesh, jobs) == ["t1", "t2", "t3"]


async def test_of_two_nodes_that_are_always_on_one_adopts(group: Group) -> None:
    a, b, c = await group.start("abc")
    async with mesh_of(a) as mesh:
        jobs = [await mesh.submit(ECHO, {"text": f"t{n}"}, delay_s=5) for n in range(8)]
        chosen = await eventually(lambda: a.lines("keeper_chosen"), 20, a.text())
        keeper = b if "node b" in chosen[0]["message"] else c
        await copied(keeper, a.local.node, jobs)
    group.kill(a)
    await taken_over(group, jobs)
    async with patient(c) as mesh:
        assert await texts(mesh, jobs) == [f"t{n}" for n in range(8)]
    adopters = {event["node"] for event in group.traces.events("adopted")}
    assert adopters == {keeper.local.node}


async def test_ends_wait_for_a_keeper_that_is_cut_off_and_happen_once(group: Group) -> None:
    a, b = await group.start("ab")
    owner = a.local.node
    async with mesh_of(a) as mesh:
        job = await mesh.submit(ECHO, {"text": "split", "delay_s": 1.5}, policy=Policy(prefer=("a",)))
        await copied(b, owner, [job])
        router = child(a, "router")
        group.traces.notes.note("cut", nodes=[owner, b.local.node])
        before = len(a.lines("keeper_lost"))
        router.suspend()
        await eventually(lambda: len(a.lines("keeper_lost")) > before, 20, a.text())  # what is sent to it by then waits
        own = await mesh.submit(ECHO, {"text": "alone"})
        await group.traces.until("ended", own.id)
        await taken_over(group, [job])
        async with patient(b) as other:
            assert await texts(other, [job]) == ["split"]
        router.resume()
        group.traces.notes.note("healed", nodes=[owner, b.local.node])
        await group.traces.until("moved", job.id, within_s=60)
    assert group.traces.count("ended", job.id) == 1
    await group.fleet.until_whole(60)
    async with patient(a) as mesh:
        assert await texts(mesh, [job, own]) == ["split", "alone"]


async def test_without_its_keeper_a_restarted_owner_does_new_jobs_and_holds_the_old(group: Group) -> None:
    a, b = await group.start("ab")
    async with mesh_of(a) as mesh:
        old = await mesh.submit(ECHO, {"text": "old"}, delay_s=2.0)
        await copied(b, a.local.node, [old])
    group.kill(b)
    group.kill(a)
    a.spawn()
    await a.until_up()

    async with mesh_of(a) as mesh:

        async def is_told() -> bool:
            return any("waits for its keeper b" in view.presence.held for view in await mesh.nodes())

        new = await mesh.submit(ECHO, {"text": "new"})
        assert await texts(mesh, [new]) == ["new"]
        await eventually(is_told, 30, a.text())
        assert "waits for b" in (await mesh.job(old.id)).reason
        assert group.traces.count("started", old.id) == 0
        await group.again(b)
        assert await texts(mesh, [old]) == ["old"]
        assert (await mesh.job(old.id)).owner == a.local.node


async def test_owner_made_to_forget_its_keeper_does_its_jobs_itself(group: Group) -> None:
    a, b = await group.start("ab")
    async with mesh_of(a) as mesh:
        job = await mesh.submit(ECHO, {"text": "mine"}, delay_s=2.0)
        await copied(b, a.local.node, [job])
    group.kill(b)
    group.kill(a)
    (a.state / "keeper.json").unlink()
    a.spawn()
    await a.until_up()
    async with mesh_of(a) as mesh:
        assert await texts(mesh, [job]) == ["mine"]


async def test_keeper_that_stops_in_order_keeps_nobody_waiting(group: Group) -> None:
    a, b = await group.start("ab")
    owner = a.local.node
    async with mesh_of(a) as mesh:
        job = await mesh.submit(ECHO, {"text": "free", "delay_s": 3.0}, policy=Policy(prefer=("a",)))
        await copied(b, owner, [job])
        b.stop()
        assert await texts(mesh, [job]) == ["free"]
        record = await mesh.job(job.id)
        assert record.owner == owner
    await group.again(b)
    async with mesh_of(b) as mesh:
        with suppress(OutbidError):
            await mesh.cancel(job.id)
        assert (await mesh.job(job.id)).state == "done"


class Storm:
    """Clients hand jobs to whichever node answers while nodes are killed, frozen and cut off, one at a time."""

    def __init__(self, group: Group, nodes: Sequence[NodeProcess], seed: int, lasts_s: float) -> None:
        self.group = group
        self.nodes = nodes
        self.random = Random(seed)
        self.until = time.monotonic() + lasts_s
        self.accepted: list[str] = []

    async def run(self) -> None:
        await asyncio.gather(self._hurt(), *map(self._submit, "klmn"))

    async def _submit(self, name: str) -> None:
        for number in itertools.count():
            if time.monotonic() > self.until:
                return
            id = f"{name}-{number}"
            with suppress(OutbidError, TimeoutError):
                async with asyncio.timeout(20), Mesh(state=self.random.choice(self.nodes).state) as mesh:
                    params = {"text": id, "delay_s": self.random.choice([0, 0.3, 1.5])}
                    await mesh.submit(ECHO, params, job=id, delay_s=self.random.choice([0.01, 0.5, 3, 6]))
                self.accepted.append(id)
            await asyncio.sleep(self.random.random())

    async def _hurt(self) -> None:
        await self._stay_away(self.nodes[0])
        while time.monotonic() < self.until:
            node, away_s = self.random.choice(self.nodes), self.random.choice([0.2, 4, 8])
            await self.random.choice([self._kill, self._freeze, self._cut])(node, away_s)
            await asyncio.sleep(self.random.uniform(0.2, 1.5))

    async def _stay_away(self, node: NodeProcess) -> None:
        """Killed with a job whose copy is elsewhere, until that was taken over."""
        async with mesh_of(node) as mesh:
            job = await mesh.submit(ECHO, {"text": "left"}, job="left", delay_s=20)
        chosen = await eventually(lambda: node.lines("keeper_chosen"), 20, node.text())
        keeper = next(other for other in self.nodes if f"node {other.name}" in chosen[-1]["message"])
        await copied(keeper, node.local.node, [job])
        self.group.kill(node)
        await taken_over(self.group, [job])
        self.accepted.append(job.id)
        node.spawn()
        await node.until_up(60)

    async def _kill(self, node: NodeProcess, away_s: float) -> None:
        self.group.kill(node)
        await asyncio.sleep(away_s)
        node.spawn()
        await node.until_up(60)

    async def _freeze(self, node: NodeProcess, away_s: float) -> None:
        await self._suspend(psutil.Process(node.pid), node, away_s)

    async def _cut(self, node: NodeProcess, away_s: float) -> None:
        with suppress(StopIteration, psutil.Error):
            await self._suspend(child(node, "router"), node, away_s)

    async def _suspend(self, process: psutil.Process, node: NodeProcess, away_s: float) -> None:
        id = node.local.node
        self.group.traces.notes.note("frozen", node=id)
        process.suspend()
        await asyncio.sleep(away_s)
        process.resume()
        self.group.traces.notes.note("resumed", node=id)


async def test_every_job_ends_once_while_owners_and_keepers_come_and_go(group: Group) -> None:
    nodes = await group.start("abc")
    storm = Storm(group, nodes, seed=3, lasts_s=40)
    await storm.run()
    await group.fleet.until_whole(60)
    async with patient(nodes[0]) as mesh:
        results = await asyncio.gather(*(mesh.attach(id).result(90) for id in storm.accepted))
        unheard = {event["job"] for event in group.traces.events("accepted")} - set(storm.accepted)
        await asyncio.gather(*(mesh.attach(id).result(90) for id in unheard))  # accepted, but the answer was lost
    assert [result["text"] for result in results] == storm.accepted
