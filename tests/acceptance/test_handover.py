"""Streams that lose the node that answers, or their owner, go on in the same stream: no piece lost, none doubled."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from outbid import Mesh
from outbid.chat import ChatStream, Reply
from outbid_contracts import subjects
from outbid_contracts.admin import DrainReply, DrainRequest
from outbid_contracts.events import AttemptLost, Awarded, Chunk, Finished, JobEvent
from outbid_contracts.policy import Policy
from tests.fleet import TEST_CAPABILITY, Fleet, NodeProcess, eventually, fleet, mesh_of

TEXT = "".join(random.Random(4).choices("abcdefghijklmnopqrstuvwxyz ", k=1000))
PROMPT = "List the planets of the solar system."
"""Where the model is sure of itself: reading a text in one go and writing it token by token differ in the last bits of
a number, and turn the model where two tokens are as good as equal (3 of 30 answers, of other prompts, cut anywhere).
"""

TOKENS = 64
CERTAIN = 40
"""Characters of the answer that come before anything happens to it."""

Blow = Callable[[], object]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path) as running:
        yield running


# -- pieces of text ---------------------------------------------------------------------------------------------------


async def echo(mesh: Mesh, blows: dict[int, Blow], *, chunks: int, delay_s: float, policy: Policy) -> list[JobEvent]:
    """All events of an echo. `blows[n]` falls when piece n has come for the first time."""
    seen: list[JobEvent] = []
    asked = {"text": TEXT, "chunks": chunks, "delay_s": delay_s}
    async for event in mesh.stream("test.echo", asked, policy=policy):
        seen.append(event)
        if isinstance(event, Chunk) and (blow := blows.pop(event.seq, None)) is not None:
            await asyncio.to_thread(blow)
    return seen


def assert_whole(seen: list[JobEvent], chunks: int) -> Finished:
    """Every piece came exactly once, in order, and each award but the first went on where the one before ended."""
    pieces = [event for event in seen if isinstance(event, Chunk)]
    assert [piece.seq for piece in pieces] == list(range(chunks))
    assert [piece.data["n"] for piece in pieces] == list(range(chunks))
    assert "".join(piece.data["text"] for piece in pieces) == TEXT
    last = seen[-1]
    assert isinstance(last, Finished)
    assert last.result["text"] == TEXT
    assert last.chunks == chunks
    return last


def winner_of(seen: list[JobEvent], nodes: list[NodeProcess]) -> NodeProcess:
    name = [event.name for event in seen if isinstance(event, Awarded)][-1]
    return next(node for node in nodes if node.name == name)


async def test_a_stream_goes_on_after_the_last_piece_that_came_when_its_node_is_killed(nodes: Fleet) -> None:
    a, b, _ = await nodes.start("a", "b", "c")
    async with mesh_of(a) as mesh:
        seen = await echo(mesh, {10: b.kill}, chunks=20, delay_s=0.1, policy=Policy(prefer=("b",)))
    assert assert_whole(seen, 20).attempt == 2
    (lost,) = [event for event in seen if isinstance(event, AttemptLost)]
    assert lost.retry
    assert [event.chunks > 0 for event in seen if isinstance(event, Awarded)] == [False, True]


async def test_pieces_are_neither_lost_nor_doubled_however_often_runners_and_daemons_are_killed(nodes: Fleet) -> None:
    a, *workers = await face_and_workers(nodes, "b", "c", "d", face=("--set", "limits.max_attempts=20"))
    dice, seen = random.Random(), list[JobEvent]()
    blows = dice.sample(range(5, 190), 5)
    kills: list[str] = []

    async def strike(mesh: Mesh) -> None:
        """A daemon only while there are others: with nobody left that could go on, a stream ends."""
        node, there = winner_of(seen, workers), len(await mesh.nodes())
        if dice.random() < 0.5 or there < 3:
            kills.append("runner")
            runner_of(node).kill()
        else:
            kills.append("daemon")
            node.kill()
            node.spawn()

    asked = {"text": TEXT, "chunks": 200, "delay_s": 0.05}
    async with mesh_of(a) as mesh:
        async for event in mesh.stream("test.echo", asked):
            seen.append(event)
            if isinstance(event, Chunk) and event.seq in blows:
                await strike(mesh)
    assert_whole(seen, 200)
    lost = [event for event in seen if isinstance(event, AttemptLost)]
    assert len(lost) == 5, (kills, lost)


async def test_late_pieces_of_a_node_that_was_frozen_are_dropped(nodes: Fleet) -> None:
    a, b, _ = await nodes.start("a", "b", "c")
    seen: list[JobEvent] = []
    thawed = False
    async with mesh_of(a) as mesh:
        policy = Policy(prefer=("b",))
        asked = {"text": TEXT, "chunks": 60, "delay_s": 0.1}
        async for event in mesh.stream("test.echo", asked, policy=policy):
            seen.append(event)
            if isinstance(event, Chunk) and event.seq == 10:
                os.kill(b.pid, signal.SIGSTOP)
            if isinstance(event, Chunk) and event.attempt == 2 and not thawed:
                os.kill(b.pid, signal.SIGCONT)
                thawed = True
    assert thawed
    assert assert_whole(seen, 60).attempt == 2
    await until_idle(b)


async def test_a_drained_node_hands_its_streams_over_and_finishes_the_rest(nodes: Fleet) -> None:
    a, b, _ = await nodes.start("a", "b", "c")
    prefer = Policy(prefer=("b",))
    async with mesh_of(a) as mesh:
        single = asyncio.ensure_future(
            mesh.run("test.echo", {"text": "x", "chunks": 4, "delay_s": 0.5}, policy=prefer, job="single", timeout_s=30)
        )
        await eventually(functools.partial(running, b), 10, "b did not start the job")
        replies: list[DrainReply] = []
        seen: list[JobEvent] = []
        async for event in mesh.stream("test.echo", {"text": TEXT, "chunks": 40, "delay_s": 0.05}, policy=prefer):
            seen.append(event)
            if isinstance(event, Chunk) and event.seq == 10:
                replies.append(await drain(b))
        assert_whole(seen, 40)
        (lost,) = [event for event in seen if isinstance(event, AttemptLost)]
        assert lost.error.code == "draining"
        assert (await single)["name"] == "b", "what cannot go on elsewhere is finished here"
        (reply,) = replies
        assert reply.draining
        assert reply.runs_on == ("single",)
        assert reply.handed_over == (seen[0].job,)
        states = {view.presence.name: view.presence.state for view in await mesh.nodes()}
        assert states == {"a": "up", "b": "draining", "c": "up"}
        record = await mesh.job(seen[0].job)
        assert [attempt.error.code if attempt.error else "" for attempt in record.attempts] == ["draining", ""]
        assert not (await drain(b, undo=True)).draining
        result = await mesh.run("test.echo", {"text": "again", "delay_s": 0.1}, policy=prefer, timeout_s=30)
        assert result["name"] == "b"


async def test_draining_the_only_able_node_cuts_no_stream(nodes: Fleet) -> None:
    (a,) = await nodes.start("a")
    async with mesh_of(a) as mesh:
        seen = []
        async for event in mesh.stream("test.echo", {"text": TEXT, "chunks": 20, "delay_s": 0.05}):
            seen.append(event)
            if isinstance(event, Chunk) and event.seq == 5:
                assert (await drain(a)).runs_on == (event.job,)
    assert assert_whole(seen, 20).attempt == 1


async def test_a_node_that_stops_hands_its_streams_over_at_once(nodes: Fleet) -> None:
    a, b, _ = await nodes.start("a", "b", "c")
    stopped = asyncio.get_running_loop().create_future()
    async with mesh_of(a) as mesh:
        seen = []
        policy = Policy(prefer=("b",))
        began = time.monotonic()
        async for event in mesh.stream("test.echo", {"text": TEXT, "chunks": 300, "delay_s": 0.05}, policy=policy):
            seen.append(event)
            if isinstance(event, Chunk) and event.seq == 10:
                began = time.monotonic()
                stopped = asyncio.ensure_future(asyncio.to_thread(b.stop))
            if isinstance(event, AttemptLost):
                assert event.error.code == "draining"
                assert time.monotonic() - began < 3
        assert await stopped == 0
    assert assert_whole(seen, 300).attempt == 2


async def test_a_stream_outlives_its_owner_that_is_killed_and_comes_back(nodes: Fleet) -> None:
    a, b, _ = await face_and_workers(nodes, "b", "c")

    def fell_the_owner() -> None:
        a.kill()
        a.spawn()

    async with mesh_of(a) as mesh:
        seen = await echo(mesh, {10: fell_the_owner}, chunks=120, delay_s=0.05, policy=Policy(prefer=("b",)))
        assert_whole(seen, 120)
        assert await mesh.nodes()
    await until_idle(b)


async def test_a_stream_outlives_the_ledger_it_came_through(nodes: Fleet) -> None:
    a, _ = await nodes.start("a", "b")

    def fell_the_ledger() -> None:
        ledger = next(p for p in psutil.Process(a.pid).children() if "ledger" in " ".join(p.cmdline()))
        ledger.kill()

    async with mesh_of(a) as mesh:
        seen = await echo(mesh, {10: fell_the_ledger}, chunks=120, delay_s=0.05, policy=Policy(prefer=("b",)))
    assert_whole(seen, 120)


# -- a real model -----------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def models(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Three nodes with the default model loaded; `a` is asked, the others answer."""
    with fleet(tmp_path_factory.mktemp("handover")) as running_nodes:
        await running_nodes.start("a", "b", "c", flags=("--set", "llm.slots=2"))
        async with mesh_of(running_nodes.nodes[0]) as mesh:
            for name in ("b", "c"):
                await mesh.chat("Say hello.", max_tokens=4, policy=Policy(prefer=(name,))).reply()
        yield running_nodes


async def tell(stream: ChatStream, blow: Blow | None = None, after: int = 16) -> tuple[str, Reply]:
    """What the chunks said, and the reply. `blow` falls after so many."""
    said = []
    async for chunk in stream:
        said.append(chunk.text)
        if len(said) == after and blow is not None:
            blow()
    return "".join(said), await stream.reply()


def story(mesh: Mesh, events: list[JobEvent], prefer: str) -> ChatStream:
    policy = Policy(prefer=(prefer,), avoid=("a",))
    return mesh.chat(PROMPT, policy=policy, on_event=events.append, max_tokens=TOKENS, temperature=0)


@pytest.mark.model
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("how", ["runner", "drain", "freeze", "daemon"])
async def test_an_answer_goes_on_word_for_word_on_another_node(models: Fleet, how: str) -> None:
    """Reading a text and having written it differ in the last bits, which turns a near tie in one answer of ten: so one
    of three must be the unbroken one, and all must be without a seam.
    """
    a, b, _ = models.nodes
    async with mesh_of(a) as mesh:
        unbroken, whole = await tell(story(mesh, [], "b"))
        for _ in range(3):
            said, reply = await broken_answer(mesh, b, how)
            assert said == reply.text
            assert said.startswith(unbroken[:CERTAIN])
            if said == unbroken:
                break
            await models.until_whole()
    assert said == unbroken == whole.text
    assert reply.usage == whole.usage
    assert reply.finish_reason == whole.finish_reason


async def broken_answer(mesh: Mesh, b: NodeProcess, how: str) -> tuple[str, Reply]:
    """That of b, where something happens in the middle, so that c ends it."""
    if b.process is None or b.process.poll() is not None:
        b.spawn()
        await b.until_up()
    events: list[JobEvent] = []
    drained: list[asyncio.Future[DrainReply]] = []
    stream = story(mesh, events, "b")
    async with mesh_of(b) as there:
        blows: dict[str, Blow] = {
            "runner": lambda: runner_of(b).kill(),
            "drain": lambda: drained.append(asyncio.ensure_future(ask_to_drain(there, b))),
            "freeze": lambda: os.kill(b.pid, signal.SIGSTOP),
            "daemon": b.kill,
        }
        try:
            said, reply = await tell(stream, blows[how])
            assert [(await one).handed_over for one in drained] == [(stream.job,)] * len(drained)
        finally:
            if how == "freeze":
                os.kill(b.pid, signal.SIGCONT)
            if drained:
                await ask_to_drain(there, b, undo=True)
    assert (stream.handovers, stream.restarts) == (1, 0)
    assert [type(e) for e in events if isinstance(e, (Awarded, AttemptLost))] == [Awarded, AttemptLost, Awarded]
    assert (reply.attempt, reply.name) == (2, "c")
    if how != "daemon":
        await until_idle(b)
    return said, reply


# -- helpers ----------------------------------------------------------------------------------------------------------


async def face_and_workers(nodes: Fleet, *names: str, face: tuple[str, ...] = ()) -> list[NodeProcess]:
    """A node that owns what it is asked and runs none of it, and others that do."""
    nodes.add("a", *face)
    for name in names:
        nodes.add(name, *TEST_CAPABILITY)
    await asyncio.gather(*(node.until_up() for node in nodes.nodes))
    await nodes.until_whole()
    return nodes.nodes


async def drain(node: NodeProcess, *, undo: bool = False) -> DrainReply:
    async with mesh_of(node) as mesh:
        return await ask_to_drain(mesh, node, undo=undo)


async def ask_to_drain(mesh: Mesh, node: NodeProcess, *, undo: bool = False) -> DrainReply:
    subject = subjects.admin(node.local.node, "drain")
    reply: DrainReply = await mesh.connection.request(subject, DrainRequest(undo=undo), DrainReply, timeout_s=10)
    return reply


def runner_of(node: NodeProcess) -> psutil.Process:
    children = psutil.Process(node.pid).children(recursive=True)
    return next(child for child in children if "runner_kit" in " ".join(child.cmdline()))


async def until_idle(node: NodeProcess) -> None:
    """Attempts that were given up end before their time."""

    async def idle() -> bool:
        return not await running(node)

    await eventually(idle, 10, f"{node.name} still runs an attempt that was given up")


async def running(node: NodeProcess) -> int:
    """Attempts under way on it, as it says itself."""
    async with mesh_of(node) as mesh:
        return next(view.presence.running for view in await mesh.nodes() if view.here)
