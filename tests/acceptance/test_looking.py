"""Looking on a real mesh: presence, events of jobs, auctions, log lines, by whoever may, over a link lost and back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.msg import Msg

from outbid import LinkBack, LinkLost, LiveEvent, Mesh
from outbid.connection import AccessRefused
from outbid_contracts import subjects
from outbid_contracts.events import Awarded, Chunk, Finished, Progressed
from outbid_contracts.live import AuctionHeld, LogLine
from outbid_contracts.messages import Presence
from outbid_contracts.policy import Policy
from outbid_node.identity import jwt
from outbid_node.identity.keyring import Keyring
from outbid_node.identity.keys import new_user
from tests.fleet import NodeProcess, eventually, fleet, mesh_of

WITHIN_S = 40


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeProcess]]:
    with fleet(tmp_path_factory.mktemp("looking")) as nodes:
        yield asyncio.run(nodes.start("a", "b"))


class Heard:
    """What a watcher was told, in order."""

    def __init__(self) -> None:
        self.events: list[LiveEvent] = []

    def of(self, kind: Any, **wanted: Any) -> list[Any]:
        found = [event for event in self.events if isinstance(event, kind)]
        return [event for event in found if all(getattr(event, key) == value for key, value in wanted.items())]

    async def until(self, true: Callable[[], Any]) -> Any:
        return await eventually(true, WITHIN_S, f"heard only {[type(event).__name__ for event in self.events]}")


@asynccontextmanager
async def looking(mesh: Mesh, **wanted: Any) -> AsyncIterator[Heard]:
    """Inside, both nodes know that an administrator looks on: they answered what it asked after that."""
    heard = Heard()

    async def read() -> None:
        async for event in mesh.live(**wanted):
            heard.events.append(event)

    reading = asyncio.create_task(read())
    try:
        await heard.until(lambda: {event.name for event in heard.of(Presence)} == {"a", "b"})
        with contextlib.suppress(AccessRefused):
            await asyncio.gather(*(mesh.node(name).logs(limit=1) for name in ("a", "b")))
        yield heard
    finally:
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading


def viewer(node: NodeProcess) -> Path:
    key = Keyring(node.state.with_name("keyring")).find(node.mesh)
    assert key is not None
    user = new_user()
    file = node.state.parent / "viewer.creds"
    file.write_text(jwt.credentials(jwt.user(key, "viewer", "ann", user.public, expires_s=600), user))
    return file


async def test_every_job_and_its_auction_are_told_with_bids_and_winner(pair: list[NodeProcess]) -> None:
    """Also of a job that is over in a millisecond, and of one that another program asked another node for."""
    async with mesh_of(pair[0]) as mesh, mesh_of(pair[1]) as other:
        async with looking(mesh, auctions=True) as heard:
            short = await mesh.run("test.noop", {})
            long = await other.run("test.steps", {"steps": 3, "delay_s": 0.1}, policy=Policy(prefer=("a",)))
            await heard.until(lambda: len(heard.of(Finished)) >= 2 and len(heard.of(AuctionHeld)) >= 2)
        for done in (short, long):
            (auction,) = heard.of(AuctionHeld, job=done["job"])
            (award,) = heard.of(Awarded, job=done["job"])
            assert auction.sheet.winner == award.node == done["node"]
            assert {bid.bid.node for bid in auction.sheet.bids} == {node.local.node for node in pair}
        asked = heard.of(AuctionHeld, job=long["job"])[0]
        assert (asked.owner, asked.capability, asked.sheet.how) == (pair[1].local.node, "test.steps", "asked")
        assert asked.arrived_ms.keys() == {pair[0].local.node}
        assert 0 < asked.arrived_ms[pair[0].local.node] <= asked.sheet.took_ms
        assert heard.of(Finished, job=long["job"])[0].result == {}


async def test_who_looks_on_sees_how_far_the_jobs_of_others_are_but_not_what_they_say(pair: list[NodeProcess]) -> None:
    async with mesh_of(pair[0]) as mesh, mesh_of(pair[1]) as other:
        async with looking(mesh) as heard:
            asked = {"steps": 4, "delay_s": 0.15, "chunks": True}
            events = [event async for event in other.stream("test.steps", asked)]
            job = events[-1].job
            await heard.until(lambda: heard.of(Finished, job=job))
        assert [event for event in events if isinstance(event, Chunk)]
        assert not heard.of(Chunk)
        steps = [event.step for event in heard.of(Progressed, job=job)]
        assert steps
        assert steps == sorted(set(steps))


async def test_a_node_that_nobody_looks_at_tells_nothing_of_short_jobs(tmp_path: Path) -> None:
    told: list[str] = []

    async def note(msg: Msg) -> None:
        told.append(msg.subject)

    with fleet(tmp_path) as nodes:
        (node,) = await nodes.start("n")
        listener = await nats.connect(node.local.url, user_credentials=node.node_creds)
        for subject in (subjects.AUCTION_ALL, subjects.LOG_ALL, subjects.JOB_EVENT_ALL):
            await listener.subscribe(subject, cb=note)
        for _ in range(2):  # nats-py's first ping may overtake the subscriptions
            await listener.flush()
        async with mesh_of(node) as mesh:
            await mesh.run("test.noop", {})  # it loads its runner, and so is promised to take long
            await eventually(lambda: len(told) == 2, WITHIN_S, f"of the first one was told {told}")
            told.clear()
            done = await mesh.run("test.noop", {})
            await mesh.node().drain()
            assert (await mesh.job(done["job"])).state == "done"
        await listener.flush()
        assert told == []
        await listener.close()


async def test_log_lines_of_all_nodes_reach_an_administrator_and_the_last_ones_can_be_asked_for(
    pair: list[NodeProcess],
) -> None:
    async with mesh_of(pair[0]) as mesh:
        async with looking(mesh, jobs=False, logs="info") as heard:
            drained = await eventually(lambda: _drained(mesh, heard), WITHIN_S, "no line was heard")
        assert (drained.name, drained.level, drained.text) == ("b", "info", "drains")
        lines = (await mesh.node("b").logs(limit=1000)).lines
        assert {"node_up", "node_drained"} <= {line.action for line in lines}
        assert [line.time_ms for line in lines] == sorted(line.time_ms for line in lines)
        warnings = (await mesh.node("b").logs(level="error")).lines
        assert not [line for line in warnings if line.level in ("debug", "info", "warning")]


async def _drained(mesh: Mesh, heard: Heard) -> LogLine | None:
    """The watch is under way to b while this begins, so b is asked again until a line comes."""
    await mesh.node("b").drain()
    await mesh.node("b").undrain()
    return next((line for line in heard.of(LogLine, action="node_drained") if line.text == "drains"), None)


async def test_a_viewer_watches_auctions_and_no_logs_and_nonsense_from_it_harms_nobody(
    pair: list[NodeProcess],
) -> None:
    a = pair[0]
    async with Mesh(a.local.url, creds=viewer(a)) as mesh, mesh_of(a) as mine:
        with pytest.raises(AccessRefused, match=r"mesh\.log"):
            async for _ in mesh.live(logs="debug"):
                pass
        with pytest.raises(AccessRefused, match=r"mesh\.admin"):
            await mesh.node("b").logs()
        for nonsense in (b"", b"watch", b"{", b'{"auctions": 7}', b'{"logs": "everything"}', b"\xff" * 10_000):
            await mesh.connection.post(subjects.WATCH, nonsense)
        async with looking(mesh, auctions=True) as heard:

            async def told() -> bool:
                done = await mine.run("test.noop", {})
                return bool(heard.of(AuctionHeld, job=done["job"]))

            await heard.until(told)
    assert await eventually(lambda: a.lines("watch_unreadable"), WITHIN_S, a.text())
    for line in ("task_failed", "part_died"):
        assert not a.lines(line)


async def test_a_closed_watcher_leaves_no_subscription_behind(pair: list[NodeProcess]) -> None:
    async with mesh_of(pair[0]) as mesh:
        before = len(mesh.connection._nc._subs)
        events = mesh.live(auctions=True, logs="debug")
        await anext(events)
        assert len(mesh.connection._nc._subs) == before + 4
        await events.aclose()
        assert len(mesh.connection._nc._subs) == before


async def test_a_link_that_is_lost_comes_back_by_itself_and_the_auctions_with_it(pair: list[NodeProcess]) -> None:
    a, _ = pair
    async with mesh_of(a) as mesh, looking(mesh, auctions=True) as heard:
        a.kill()
        await heard.until(lambda: heard.of(LinkLost))
        a.spawn()
        await a.until_up()
        await heard.until(lambda: heard.of(LinkBack))
        heard.events.clear()
        await heard.until(lambda: {event.name for event in heard.of(Presence)} == {"a", "b"})

        async def told() -> bool:
            done = await mesh.run("test.noop", {})
            return bool(heard.of(AuctionHeld, job=done["job"]))

        await heard.until(told)
        assert not heard.of(LinkLost)
