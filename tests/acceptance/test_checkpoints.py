"""Jobs that give checkpoints lose a few steps with their node, not all: each goes on, on another node, in the same job.

The digest of `test.steps` is made of all steps in their order, so one that was left out or done twice would show.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest

from outbid import Mesh
from outbid_capabilities.testing.counting import Work
from outbid_contracts import subjects
from outbid_contracts.codec import decode, encode
from outbid_contracts.errors import AttemptFailed, AttemptsExhausted, Cancelled, Draining, OutbidError, UnknownJob
from outbid_contracts.events import AttemptLost, Awarded, Chunk, Finished, JobEvent, Progressed
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import (
    MAX_CHECKPOINT_BYTES,
    Award,
    Checkpoint,
    Failed,
    SaveCheckpoint,
    Settle,
    Settled,
)
from outbid_contracts.policy import Policy
from tests.acceptance.test_handover import drain, face_and_workers, runner_of, until_idle
from tests.acceptance.test_scripted_peer import PEER, ScriptedPeer
from tests.fleet import TEST_CAPABILITY, Fleet, NodeProcess, eventually, fleet, mesh_of

STEPS = "test.steps"
ON_B = Policy(prefer=("b",))
ASKED: dict[str, Any] = {"steps": 30, "delay_s": 0.05, "checkpoint_every": 10}
AT = 22
LAST = 20
"""The last checkpoint before step AT; the next is far enough for a kill that comes late."""

Blow = Callable[[], object]


def digest(steps: int) -> str:
    found = b""
    for step in range(1, steps + 1):
        found = hashlib.sha256(found + step.to_bytes(4, "big")).digest()
    return found.hex()


class Trio:
    """A face, and two nodes that work. A test may hurt them; the next one gets them whole again."""

    def __init__(self, nodes: Fleet) -> None:
        self.fleet = nodes
        self.a, self.b, self.c = nodes.nodes

    async def whole(self) -> None:
        for node in self.fleet.nodes:
            if node.process is None or node.process.poll() is not None:
                node.spawn()
        await asyncio.gather(*(node.until_up() for node in self.fleet.nodes))
        await self.fleet.until_whole()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    with fleet(tmp_path_factory.mktemp("checkpoints")) as nodes:
        asyncio.run(face_and_workers(nodes, "b", "c"))
        yield Trio(nodes)


@pytest.fixture
async def trio(started: Trio) -> Trio:
    await started.whole()
    return started


async def count(mesh: Mesh, blow: Blow | None = None, at: int = AT, **more: Any) -> list[JobEvent]:
    """All events of a job on b, where something happens after a step."""
    seen: list[JobEvent] = []
    async for event in mesh.stream(STEPS, ASKED | more, policy=ON_B):
        seen.append(event)
        if isinstance(event, Progressed) and event.step == at and blow is not None:
            await asyncio.to_thread(blow)
            blow = None
    return seen


def awards(seen: list[JobEvent]) -> list[tuple[str, int]]:
    """Who got it, and the step it went on from."""
    return [(event.name, event.step) for event in seen if isinstance(event, Awarded)]


def assert_done(seen: list[JobEvent], *begun_after: int) -> Finished:
    """Every step was taken once, in processes that began after these steps."""
    last = seen[-1]
    assert isinstance(last, Finished)
    assert last.result["digest"] == digest(30)
    assert [first for _, first in last.result["runs"]] == list(begun_after)
    return last


# -- the node is lost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["daemon", "runner"])
async def test_a_job_whose_node_is_killed_goes_on_from_its_last_checkpoint(trio: Trio, what: str) -> None:
    async with mesh_of(trio.a) as mesh:
        await count(mesh, steps=1, delay_s=0)
        seen = await count(mesh, trio.b.kill if what == "daemon" else runner_of(trio.b).kill)
        record = await mesh.job(seen[0].job)
    assert awards(seen) == [("b", 0), ("c", LAST)]
    assert [attempt.step for attempt in record.attempts] == [0, LAST]
    assert assert_done(seen, 0, LAST).attempt == 2
    (lost,) = [event for event in seen if isinstance(event, AttemptLost)]
    assert lost.error.code == ("node_lost" if what == "daemon" else "runner_crashed")
    after = [event.step for event in seen[seen.index(lost) :] if isinstance(event, Progressed)]
    assert after == list(range(LAST + 1, 31))


async def test_pieces_of_a_stream_are_counted_anew_by_the_attempt_that_goes_on(trio: Trio) -> None:
    async with mesh_of(trio.a) as mesh:
        seen = await count(mesh, trio.b.kill, chunks=True)
    pieces = [(event.attempt, event.seq, event.data["step"]) for event in seen if isinstance(event, Chunk)]
    second = [piece for piece in pieces if piece[0] == 2]
    assert second == [(2, n, LAST + 1 + n) for n in range(30 - LAST)]
    first = [piece[:2] for piece in pieces if piece[0] == 1]
    assert first == [(1, n) for n in range(len(first))]
    assert len(first) >= AT - 1  # it was killed when its step was told, perhaps before that step's piece was
    assert assert_done(seen, 0, LAST).chunks == 30 - LAST


async def test_an_owner_that_comes_back_begins_again_and_what_it_streams_is_news(trio: Trio) -> None:
    """Checkpoints of a job that is not durable are in its owner's memory only."""

    def fell_the_owner() -> None:
        trio.a.kill()
        trio.a.spawn()

    async with mesh_of(trio.a) as mesh:
        seen = await count(mesh, fell_the_owner, chunks=True)
    last = assert_done(seen, 0)
    pieces = [event.data["step"] for event in seen if isinstance(event, Chunk) and event.attempt == last.attempt]
    assert pieces == list(range(1, 31))
    await until_idle(trio.b)


# -- what is wrong with checkpoints -----------------------------------------------------------------------------------


async def test_a_checkpoint_that_kills_runners_costs_one_attempt_and_not_the_job(trio: Trio) -> None:
    async with mesh_of(trio.a) as mesh:
        await count(mesh, steps=1, delay_s=0)
        seen = await count(mesh, runner_of(trio.b).kill, die_on_checkpoint=True)
    assert [step for _, step in awards(seen)] == [0, LAST, 0]
    assert assert_done(seen, 0).attempt == 3


@pytest.mark.parametrize("how", ["garbage_checkpoints", "ignore_checkpoint"])
async def test_a_runner_that_cannot_use_a_checkpoint_starts_again(trio: Trio, how: str) -> None:
    async with mesh_of(trio.a) as mesh:
        seen = await count(mesh, trio.b.kill, **{how: True})
    assert awards(seen) == [("b", 0), ("c", LAST)]
    assert_done(seen, 0)


async def test_a_checkpoint_that_is_too_large_is_not_kept(trio: Trio) -> None:
    async with mesh_of(trio.a) as mesh:
        seen = await count(mesh, trio.b.kill, padding=MAX_CHECKPOINT_BYTES)
    assert awards(seen) == [("b", 0), ("c", 0)]
    assert_done(seen, 0)
    assert trio.b.lines("checkpoint_refused")


async def test_large_checkpoints_pass_but_do_not_fill_the_network(trio: Trio) -> None:
    """One of 8 MiB in two seconds."""
    async with mesh_of(trio.a) as mesh:
        seen = await count(mesh, trio.b.kill, padding=MAX_CHECKPOINT_BYTES - 4096)
    assert awards(seen) == [("b", 0), ("c", 10)]
    assert_done(seen, 0, 10)


# -- given back on purpose --------------------------------------------------------------------------------------------


async def test_a_drained_node_hands_a_job_over_at_the_very_step(trio: Trio) -> None:
    replies = []

    async def ask() -> None:
        replies.append(await drain(trio.b))

    async with mesh_of(trio.a) as mesh:
        seen = await count(mesh, lambda: asyncio.run(ask()))
    (_, (name, step)) = awards(seen)
    done = [event.step for event in seen if isinstance(event, Progressed)]
    assert done == list(range(1, 31)), "each step was taken once"
    assert (name, step >= AT) == ("c", True)
    assert assert_done(seen, 0, step).attempt == 2
    (reply,) = replies
    assert reply.handed_over == (seen[0].job,)
    (lost,) = [event for event in seen if isinstance(event, AttemptLost)]
    assert lost.error.code == "draining"
    await drain(trio.b, undo=True)


async def test_a_job_that_nobody_watches_is_handed_over_too(trio: Trio) -> None:
    async with mesh_of(trio.a) as mesh:
        asked = ASKED | {"checkpoint_every": 1}
        job = asyncio.ensure_future(mesh.run(STEPS, asked, policy=ON_B, job="unwatched", timeout_s=60))
        await until_running(mesh, "unwatched", "b")
        assert (await drain(trio.b)).handed_over == ("unwatched",)
        result = await job
    await drain(trio.b, undo=True)
    assert (result["digest"], result["name"], result["attempt"]) == (digest(30), "c", 2)


async def test_a_node_that_stops_hands_its_jobs_over(trio: Trio) -> None:
    async with mesh_of(trio.a) as mesh:
        seen = await count(mesh, lambda: trio.b.stop())
    (_, (name, step)) = awards(seen)
    assert (name, step >= AT) == ("c", True)
    assert_done(seen, 0, step)


async def test_what_nobody_else_can_do_is_finished_by_a_node_that_drains(trio: Trio) -> None:
    trio.c.kill()
    await trio.fleet.until_whole()
    replies = []

    async def ask() -> None:
        replies.append(await drain(trio.b))

    async with mesh_of(trio.a) as mesh:
        seen = await count(mesh, lambda: asyncio.run(ask()), at=5)
    assert replies[0].runs_on == (seen[0].job,)
    assert assert_done(seen, 0).name == "b"
    await drain(trio.b, undo=True)


async def test_a_cancelled_job_ends_in_the_middle_of_a_step(trio: Trio) -> None:
    async with mesh_of(trio.a) as mesh:
        job = asyncio.ensure_future(mesh.run(STEPS, {"steps": 10, "delay_s": 60}, policy=ON_B, job="slow"))
        await until_running(mesh, "slow", "b")
        began = time.monotonic()
        await mesh.cancel("slow")
        with pytest.raises(Cancelled):
            await job
        assert time.monotonic() - began < 5
    await until_idle(trio.b)


# -- out of memory ----------------------------------------------------------------------------------------------------


async def test_a_job_that_runs_out_of_memory_moves_on_and_says_so(tmp_path: Path) -> None:
    """And where no node has enough, it says what each of them said."""
    with fleet(tmp_path) as nodes:
        b = nodes.add("b", *TEST_CAPABILITY, "--set", "test.oom_at=12")
        nodes.add("c", *TEST_CAPABILITY, "--set", "test.oom_at=40")
        await asyncio.gather(*(node.until_up() for node in nodes.nodes))
        await nodes.until_whole()
        async with mesh_of(b) as mesh:
            seen = await count(mesh)
            assert awards(seen) == [("b", 0), ("c", 10)]
            assert_done(seen, 0, 10)
            (lost,) = [event for event in seen if isinstance(event, AttemptLost)]
            assert (lost.error.code, lost.retry) == ("out_of_memory", True)
            assert "after step 12 of 30" in lost.error.message
            with pytest.raises(AttemptsExhausted) as failed:
                await mesh.run(STEPS, {"steps": 50}, policy=ON_B, timeout_s=30)
    assert "b: out of memory after step 12 of 50" in failed.value.message
    assert "c: out of memory after step 40 of 50" in failed.value.message


# -- durable jobs -----------------------------------------------------------------------------------------------------


async def blown(trio: Trio, owner: NodeProcess, blow: Blow, at: int = AT) -> list[JobEvent]:
    """All events of a durable job on b, owned by `owner`; watched there."""
    seen: list[JobEvent] = []
    async with Mesh(state=owner.state, owner_away_s=60) as mesh:
        job = await mesh.submit(STEPS, ASKED | {"delay_s": 0.1}, policy=ON_B)
        async for event in job.watch():
            seen.append(event)
            if isinstance(event, Progressed) and event.step >= at:
                await asyncio.to_thread(blow)
                at = 31
    return seen


def again(*nodes: NodeProcess) -> Blow:
    """They are killed together and started again."""

    def blow() -> None:
        for node in nodes:
            node.kill()
        for node in nodes:
            node.spawn()

    return blow


async def test_a_durable_job_goes_on_from_its_checkpoint_when_its_node_is_killed(trio: Trio) -> None:
    seen = await blown(trio, trio.a, trio.b.kill)
    assert awards(seen) == [("b", 0), ("c", LAST)]
    assert_done(seen, 0, LAST)


async def test_an_owner_that_is_killed_goes_on_from_the_checkpoint_on_its_disk(trio: Trio) -> None:
    seen = await blown(trio, trio.b, again(trio.b))
    last = seen[-1]
    assert isinstance(last, Finished)
    begun = [first for _, first in last.result["runs"]]
    assert_done(seen, 0, *begun[1:])
    assert begun[1] >= 10, "where the ledger died with the daemon, its last moments may be lost"


async def test_owner_and_winner_killed_together_cost_the_steps_since_the_last_checkpoint(trio: Trio) -> None:
    def blow() -> None:
        again(trio.a)()
        trio.b.kill()

    seen = await blown(trio, trio.a, blow)
    last = seen[-1]
    assert isinstance(last, Finished)
    begun = [first for _, first in last.result["runs"]]
    assert_done(seen, *begun)
    assert last.name == "c"
    assert begun[-1] >= 10


async def test_a_node_that_stops_in_order_loses_no_step_of_a_durable_job(tmp_path: Path) -> None:
    """Though nobody else could go on with it, and its time to finish was too short."""
    with fleet(tmp_path) as nodes:
        (a,) = await nodes.start("a", flags=(*TEST_CAPABILITY, "--set", "limits.grace_s=0.1"))
        steps: list[int] = []
        async with Mesh(state=a.state, owner_away_s=60) as mesh:
            job = await mesh.submit(STEPS, ASKED | {"delay_s": 0.1})
            async for event in job.watch():
                if isinstance(event, Progressed):
                    steps.append(event.step)
                if steps == list(range(1, 6)):
                    await asyncio.to_thread(a.stop)
                    a.spawn()
            result = await job.result(60)
    assert result["digest"] == digest(30)
    (_, first), (_, second) = result["runs"]
    assert (first, 5 <= second < 10) == (0, True), "before the first checkpoint that it gives by itself"


# -- a peer that follows a script -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with fleet(tmp_path_factory.mktemp("scripted")) as nodes:
        (a,) = asyncio.run(nodes.start("a"))
        yield a


@pytest.fixture
async def peer(alone: NodeProcess) -> AsyncIterator[ScriptedPeer]:
    scripted = ScriptedPeer(await nats.connect(alone.local.url, user_credentials=alone.node_creds), STEPS)
    await scripted.start()
    async with mesh_of(alone) as mesh:

        async def seen() -> bool:
            return len(await mesh.nodes()) == 2

        await eventually(seen, 20, "the scripted peer was not seen")
    yield scripted
    await scripted.stop()


def made(step: int, steps: int = 30) -> Checkpoint:
    """As an honest runner would have given it."""
    work = Work(runs=[[1, 0]])
    for _ in range(step):
        work.advance()
    return Checkpoint(step=step, steps=steps, data=work.pack(0))


async def save(
    peer: ScriptedPeer, award: Award, checkpoint: Checkpoint, attempt: int | None = None, node: NodeId = PEER
) -> None:
    attempt = award.attempt if attempt is None else attempt
    message = SaveCheckpoint(job=award.job.id, attempt=attempt, node=node, checkpoint=checkpoint)
    await peer.nc.publish(subjects.node(award.job.owner, "checkpoint"), encode(message))


async def fail(peer: ScriptedPeer, award: Award, error: OutbidError | None = None) -> None:
    outcome = Failed(error=(error or AttemptFailed("out of breath")).body())
    message = Settle(job=award.job.id, attempt=award.attempt, node=PEER, outcome=outcome, free=3)
    reply = await peer.nc.request(subjects.node(award.job.owner, "settle"), encode(message), timeout=5)
    assert decode(reply.data, Settled).accepted


async def with_script(
    alone: NodeProcess, peer: ScriptedPeer, script: Callable[[Award], Awaitable[None]], **more: Any
) -> dict[str, Any]:
    """The result of a plain request whose first winner is the peer."""
    async with mesh_of(alone) as mesh:
        asked = {"steps": 30} | more
        job = asyncio.ensure_future(mesh.run(STEPS, asked, policy=Policy(prefer=("scripted",)), timeout_s=60))
        await eventually(lambda: peer.awards, 10, "no award came")
        await script(peer.awards[0])
        return await job


async def test_a_plain_request_goes_on_from_a_checkpoint(alone: NodeProcess, peer: ScriptedPeer) -> None:
    async def script(award: Award) -> None:
        assert award.checkpoint is None
        await save(peer, award, made(20))
        await save(peer, award, made(24))
        await fail(peer, award)

    result = await with_script(alone, peer, script)
    assert [first for _, first in result["runs"]] == [0, 24]
    assert (result["digest"], result["attempt"]) == (digest(30), 2)


@pytest.mark.parametrize("other", [{"attempt": 2}, {"attempt": 0}, {"node": NodeId("else")}])
async def test_a_checkpoint_that_is_not_of_the_current_attempt_is_ignored(
    alone: NodeProcess, peer: ScriptedPeer, other: dict[str, Any]
) -> None:
    async def script(award: Award) -> None:
        await save(peer, award, made(24), **other)
        await fail(peer, award)

    result = await with_script(alone, peer, script)
    assert [first for _, first in result["runs"]] == [0]


async def test_a_checkpoint_of_a_step_that_there_is_not_is_ignored(alone: NodeProcess, peer: ScriptedPeer) -> None:
    async def script(award: Award) -> None:
        await save(peer, award, made(30, steps=24))
        await fail(peer, award)

    result = await with_script(alone, peer, script)
    assert [first for _, first in result["runs"]] == [0]


async def test_a_late_checkpoint_of_an_attempt_that_was_given_up_is_ignored(
    alone: NodeProcess, peer: ScriptedPeer
) -> None:
    """As a node sends it that was frozen. The same peer wins again and again, because it says that it drains."""
    steps: list[int] = []

    async def script(award: Award) -> None:
        await save(peer, award, made(6))
        await fail(peer, award, Draining())
        await eventually(lambda: len(peer.awards) > 1, 10, "no second award")
        await save(peer, award, made(28))
        await fail(peer, peer.awards[1], Draining())
        await eventually(lambda: len(peer.awards) > 2, 10, "no third award")
        steps.extend(later.checkpoint.step for later in peer.awards[1:] if later.checkpoint)
        await fail(peer, peer.awards[2])

    result = await with_script(alone, peer, script)
    assert steps == [6, 6]
    assert [first for _, first in result["runs"]] == [0], "the last one may have died of it"
    assert (result["digest"], result["attempt"]) == (digest(30), 4)


async def test_unreadable_checkpoints_are_counted_and_kill_nothing(alone: NodeProcess, peer: ScriptedPeer) -> None:
    async def script(award: Award) -> None:
        for garbage in (b"", b"\xc1", encode({"job": 1}), encode(award)):
            await peer.nc.publish(subjects.node(award.job.owner, "checkpoint"), garbage)
        await fail(peer, award)

    assert (await with_script(alone, peer, script))["digest"] == digest(30)


# -- helpers ----------------------------------------------------------------------------------------------------------


async def until_running(mesh: Mesh, job: str, name: str) -> None:
    async def there() -> bool:
        try:
            record = await mesh.job(job)
        except UnknownJob:
            return False
        nodes = {view.presence.node: view.presence.name for view in await mesh.nodes()}
        return record.state == "running" and nodes.get(record.node or NodeId("")) == name

    await eventually(there, 20, f"{job} does not run on {name}")
