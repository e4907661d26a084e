"""Thousands of durable jobs while processes are killed and networks cut; and the checker that would notice a loss."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from outbid.chaos.door import Door
from outbid.chaos.history import check
from outbid.chaos.record import Event, Notes, Seen, Violation, load, show
from outbid.chaos.run import Report, drill
from outbid.chaos.storm import Cut, Storm
from outbid.chaos.victims import Victim, until_up
from outbid.chaos.workload import Workload
from outbid_contracts import subjects
from outbid_contracts.digest import digest
from outbid_contracts.durable import ResultRequest, Submission, SubmitReply, SubmitRequest
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import JobId
from tests.fleet import TEST_CAPABILITY, Fleet, NodeProcess, eventually, fleet, mesh_of
from tests.lan import Lan, LanNode, lan, unavailable

ROOT = Path(__file__).resolve().parents[2]
JOBS, KILLS, SECONDS = 2_000, 100, 75.0
SEED = 20_261_121
PAUSE_S = (0.05, 0.9)
SLOTS = 4
SLOWER = 4.0


def flags(trace: Path) -> tuple[str, ...]:
    return (*TEST_CAPABILITY, "--set", f"test.slots={SLOTS}", "--set", f"log.trace={trace}")


# -- the storm -------------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """Five nodes, the ways in to them, and how to part them."""

    nodes: Sequence[NodeProcess]
    doors: list[Door]
    cut: Cut | None = None


@contextlib.asynccontextmanager
async def stage(folder: Path, trace: Path) -> AsyncIterator[Stage]:
    """Five machines where there may be network namespaces, else five nodes of this one (whose routers are frozen)."""
    if unavailable() is None:
        with lan(folder) as net:
            hosts = [net.host(name).node("storm", *flags(trace)) for name in "abcde"]
            await _started(hosts)
            yield Stage(hosts, [Door(node.name, node.state, node.host.call) for node in hosts], _cutting(net))
    else:
        with fleet(folder) as five:
            nodes = await five.start(*"abcde", flags=flags(trace))
            yield Stage(nodes, [Door(node.name, node.state) for node in nodes])


async def _started(nodes: Sequence[LanNode]) -> None:
    for node in nodes:
        node.spawn()
    for node in nodes:
        await until_up(node)


def _cutting(net: Lan) -> Cut:
    def cut(victims: Sequence[Victim]) -> Callable[[], None]:
        net.split([node.host for node in victims if isinstance(node, LanNode)])
        return net.heal

    return cut


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_nothing_accepted_is_lost_in_a_storm(tmp_path: Path) -> None:
    trace, notes = tmp_path / "trace", Notes(tmp_path / "notes")
    async with stage(tmp_path, trace) as five:
        workload = Workload(five.doors, Random(SEED), rate=JOBS / SECONDS)
        storm = Storm(five.nodes, notes, Random(SEED), pause_s=PAUSE_S, cut=five.cut)
        report = await drill(workload, storm, [trace, notes.path], seed=SEED, seconds=SECONDS, jobs=JOBS, kills=KILLS)
        await asyncio.gather(*(door.close() for door in five.doors))
    assert report.clean, _told(report)
    assert report.done == report.acknowledged == report.submitted >= JOBS, _told(report)
    assert report.kills >= KILLS
    assert {"runner", "daemon", "router", "ledger", "freeze"} <= report.hits.keys()


def _told(report: Report) -> str:
    worst = "\n".join(str(violation) for violation in report.violations[:20])
    about = f"{report.done} of {report.acknowledged} done, {report.hits}, lost {report.lost[:20]}"
    return f"{about}, refused {report.refused[:5]}\n{worst}"


# -- broken on purpose -----------------------------------------------------------------------------------------------


class Scene:
    """Nodes with a trace, the first of which may be broken, and one job."""

    def __init__(self, nodes: Fleet, broken: str) -> None:
        self.nodes = nodes
        self.broken = broken
        self.trace = nodes.folder / "trace"
        self.notes = Notes(nodes.folder / "notes")
        self.seen = Seen()

    async def start(self, *names: str, slow: Sequence[str] = ()) -> list[NodeProcess]:
        """`slow` ones take SLOWER times as long as asked."""
        for name in names:
            pace = SLOWER if name in slow else 1.0
            settings = (*flags(self.trace), "--set", f"test.pace={pace}")
            node = NodeProcess(self.nodes.folder / name, name, self.nodes.mesh, settings)
            if self.broken and name == names[0]:
                node.module = "tests.acceptance.broken_nodes"
                node.environment |= {"BROKEN": self.broken, "PYTHONPATH": str(ROOT)}
            self.nodes.nodes.append(node)
            node.spawn()
        await asyncio.gather(*(node.until_up() for node in self.nodes.nodes))
        await self.nodes.until_whole()
        return self.nodes.nodes

    async def submit(self, at: NodeProcess, seconds: float, prefer: str) -> None:
        job = Submission(
            capability="test.echo",
            params={"text": "once", "delay_s": seconds},
            job=JobId("j"),
            policy={"prefer": [prefer]},
            max_attempts=50,
        )
        door = Door(at.name, at.state)
        request = SubmitRequest(jobs=(job,), new=True, here=True)
        reply: SubmitReply = await door.ask(subjects.jobs("submit"), request, SubmitReply, timeout_s=20)
        self.seen = Seen(owner=reply.jobs[0].owner)
        await door.close()

    async def read(self, at: NodeProcess, within_s: float) -> None:
        """What a client is told in the end; leaves `seen` as it is if nobody knows."""
        door = Door(at.name, at.state)
        with contextlib.suppress(OutbidError):
            request = ResultRequest(job=JobId("j"), wait_s=within_s)
            reply: dict[str, Any] = await door.ask(
                subjects.jobs("result"), request, dict[str, Any], timeout_s=within_s + 15
            )
            result = {key: reply[key] for key in ("text", "pid")}
            self.seen = Seen(owner=self.seen.owner, state="done", digest=digest(result))
        await door.close()

    async def until(self, what: str, **fields: Any) -> Event:
        def there() -> Event | None:
            events = [event for event in load([self.trace]) if event["what"] == what]
            return next((event for event in events if fields.items() <= event.items()), None)

        found: Event = await eventually(there, 30, f"no {what} {fields} in the trace")
        return found

    async def until_accepted(self, owner: NodeProcess, winner: NodeProcess) -> None:
        """A winner that is frozen before its answer to the award is on its way has not got the job."""
        async with mesh_of(owner) as mesh:

            async def accepted() -> bool:
                record = await mesh.job("j")
                return (record.state, record.node) == ("running", winner.local.node)

            await eventually(accepted, 30, "the award was not accepted")

    def verdict(self) -> list[Violation]:
        return check(load([self.trace, self.notes.path]), {"j": self.seen})

    def story(self) -> str:
        return "\n".join(map(show, load([self.trace, self.notes.path])))


@pytest.fixture
def nodes(tmp_path: Path) -> Any:
    with fleet(tmp_path) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["", "unfenced"])
async def test_checker_notices_an_owner_that_takes_a_stale_result(nodes: Fleet, broken: str) -> None:
    """The winner is frozen, perhaps before its runner has the job. So that its result comes while the second attempt
    runs all the same, that one takes longer.
    """
    scene = Scene(nodes, broken)
    owner, winner, other = await scene.start("owner", "winner", "other", slow=("owner", "other"))
    await scene.submit(owner, 2.0, prefer="winner")
    await scene.until_accepted(owner, winner)
    os.kill(winner.pid, signal.SIGSTOP)
    try:
        again = await scene.until("awarded", attempt=2)
        assert again["to"] != winner.local.node
        await scene.until("started", attempt=2)
    finally:
        os.kill(winner.pid, signal.SIGCONT)
    await scene.until("settled", attempt=1)
    await scene.read(other, 30)
    found = scene.verdict()
    if not broken:
        assert found == [], scene.story()
        return
    assert {violation.invariant for violation in found} == {2}, scene.story()
    assert "attempt 1 settled, the newest is 2" in [violation.what for violation in found], scene.story()


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["", "hasty"])
async def test_checker_notices_a_journal_that_acknowledges_too_early(nodes: Fleet, broken: str) -> None:
    scene = Scene(nodes, broken)
    (owner,) = await scene.start("owner")
    await scene.submit(owner, 3.0, prefer="owner")
    with scene.notes.kill("daemon", owner.local.node):
        owner.kill()
    owner.spawn()
    await owner.until_up()
    await scene.read(owner, 30)
    found = scene.verdict()
    if not broken:
        assert found == [], scene.story()
        return
    assert {violation.invariant for violation in found} == {1}, scene.story()
    assert "it never ended" in [violation.what for violation in found], scene.story()
