"""Handovers at the worst moment, by a peer or an owner that follows a script over the real bus of a real daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.msg import Msg

from outbid import Mesh
from outbid_capabilities.testing import echo
from outbid_contracts import subjects
from outbid_contracts.codec import Format, decode, encode
from outbid_contracts.errors import AttemptFailed, DuplicateJob
from outbid_contracts.events import AttemptLost, Awarded, Chunk, Finished, JobEvent
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import (
    Award,
    CancelAttempt,
    Done,
    Failed,
    Job,
    LeaseCheck,
    LeaseState,
    Outcome,
    Settle,
    Settled,
)
from outbid_contracts.policy import Policy
from outbid_node.client import Bus
from outbid_node.delivered import Delivered
from outbid_node.worker import OWNER_SILENT_S
from tests.acceptance.test_scripted_peer import PEER, ScriptedPeer, node, peer
from tests.fleet import NodeProcess, eventually, mesh_of

__all__ = ["node", "peer"]

ASKED: dict[str, Any] = {"text": "abcdef", "chunks": 6, "delay_s": 0.1}
PREFER = Policy(prefer=("scripted",))


async def send(peer: ScriptedPeer, award: Award, pieces: str, attempt: int | None = None) -> None:
    """Pieces of one letter, as the winner of `award` would send them."""
    for seq, letter in enumerate(pieces, award.chunks):
        data = {"text": letter, "n": seq}
        piece = Chunk(job=award.job.id, seq=seq, attempt=attempt or award.attempt, data=data)
        await peer.nc.publish(str(award.job.reply), encode(piece, Format(award.job.format)))


async def settle(peer: ScriptedPeer, award: Award, outcome: Outcome) -> bool:
    message = Settle(job=award.job.id, attempt=award.attempt, node=PEER, outcome=outcome)
    reply = await peer.nc.request(subjects.node(award.job.owner, "settle"), encode(message), timeout=2)
    settled: Settled = decode(reply.data, Settled)
    return settled.accepted


async def ask(node: NodeProcess, **more: Any) -> list[JobEvent]:
    async with mesh_of(node) as mesh:
        return [event async for event in mesh.stream("test.echo", ASKED | more, policy=PREFER)]


def text_of(seen: list[JobEvent]) -> str:
    return "".join(str(event.data["text"]) for event in seen if isinstance(event, Chunk))


async def awarded(peer: ScriptedPeer, count: int = 1) -> Award:
    await eventually(lambda: len(peer.awards) >= count, 10, "no award came")
    return peer.awards[count - 1]


@pytest.fixture
def slow(peer: ScriptedPeer) -> None:
    """It bids over 50 ms, so that its pieces are worth listening to."""
    peer.on_cfp = lambda cfp: peer.good_bid(cfp, finish_s=0.1)


@pytest.mark.usefixtures("slow")
async def test_a_failed_attempts_pieces_count_up_to_the_last(node: NodeProcess, peer: ScriptedPeer) -> None:
    """The settlement comes on another subscription than the pieces and must not overtake them."""
    running = asyncio.ensure_future(ask(node))
    award = await awarded(peer)
    await send(peer, award, "abcd")
    assert await settle(peer, award, Failed(error=AttemptFailed("out of breath").body(), chunks=4))
    seen = await running
    assert [event.chunks for event in seen if isinstance(event, Awarded)] == [0, 4]
    assert text_of(seen) == "abcdef"
    assert isinstance(seen[-1], Finished)
    assert (seen[-1].result["text"], seen[-1].chunks, seen[-1].name) == ("abcdef", 6, "a")


@pytest.mark.usefixtures("slow")
async def test_nothing_is_awarded_when_all_was_delivered(node: NodeProcess, peer: ScriptedPeer) -> None:
    running = asyncio.ensure_future(ask(node))
    award = await awarded(peer)
    await send(peer, award, "abcdef")
    await peer.nc.flush()
    peer.on_lease = lambda check: LeaseState(node=PEER, unknown=check.attempts)
    seen = await running
    assert [type(event) for event in seen if not isinstance(event, Chunk)] == [Awarded, AttemptLost, Finished]
    assert isinstance(seen[-1], Finished)
    assert (seen[-1].result["text"], seen[-1].attempt, seen[-1].node) == ("abcdef", 1, PEER)


@pytest.mark.usefixtures("slow")
async def test_a_lost_attempt_is_told_to_stop_and_its_pieces_are_nobodys(node: NodeProcess, peer: ScriptedPeer) -> None:
    told: asyncio.Queue[Msg] = asyncio.Queue()

    async def take(msg: Msg) -> None:
        told.put_nowait(msg)

    await peer.nc.subscribe(subjects.node(PEER, "cancel"), cb=take)
    running = asyncio.ensure_future(ask(node))
    award = await awarded(peer)
    await send(peer, award, "ab")
    await peer.nc.flush()
    peer.on_lease = lambda check: LeaseState(node=PEER, unknown=check.attempts)
    stop = decode((await asyncio.wait_for(told.get(), 20)).data, CancelAttempt)
    assert (stop.job, stop.attempt) == (award.job.id, 1)
    while not running.done():
        await send(peer, award, "xyzxyz")
        await asyncio.sleep(0.02)
    seen = await running
    assert text_of(seen) == "abcdef"
    assert [event.chunks for event in seen if isinstance(event, Awarded)] == [0, 2]


@pytest.mark.usefixtures("slow")
async def test_a_peer_is_asked_for_the_rest_only(node: NodeProcess, peer: ScriptedPeer) -> None:
    running = asyncio.ensure_future(ask(node, delay_s=0.5))
    first = await awarded(peer)
    await send(peer, first, "abc")
    assert await settle(peer, first, Failed(error=AttemptFailed("once").body(), chunks=3))
    peer_again = asyncio.ensure_future(awarded(peer, 2))
    async with mesh_of(node) as mesh:
        await eventually(lambda: _attempts(mesh, first.job.id, 2), 20, "no second attempt")
        peer_again.cancel()
        record = await mesh.job(first.job.id)
    assert (await running)[-1].result["text"] == "abcdef"  # type: ignore[union-attr]
    assert record.promised_s is not None
    assert record.promised_s < 2.5, "promised for three pieces of half a second, not six"


async def _attempts(mesh: Mesh, job: JobId, count: int) -> bool:
    return len((await mesh.job(job)).attempts) >= count


@pytest.mark.usefixtures("slow")
async def test_a_newer_attempt_voids_an_older_one_whoever_awarded_it(node: NodeProcess, peer: ScriptedPeer) -> None:
    """An owner that died and came back under another attempt number must not find its node busy with the old one."""
    async with mesh_of(node) as mesh:
        running = asyncio.ensure_future(ask(node, delay_s=0.3))
        old = await awarded(peer)
        subject = subjects.node(node.local.node, "award")
        foreign = Award(job=_of_peer(old), attempt=1)
        await peer.nc.request(subject, encode(foreign), timeout=5)
        await eventually(lambda: _busy(mesh, 1), 10, "the award was not taken")
        newer = Award(job=_of_peer(old), attempt=101)
        await peer.nc.request(subject, encode(newer), timeout=5)
        settled: list[Settle] = []

        async def take(msg: Msg) -> None:
            settled.append(decode(msg.data, Settle))
            await msg.respond(encode(Settled(accepted=True)))

        await peer.nc.subscribe(subjects.node(PEER, "settle"), cb=take)
        await eventually(lambda: len(settled) == 2, 15, "not both were settled")
        assert [(one.attempt, type(one.outcome).__name__) for one in settled] == [(1, "Stopped"), (101, "Done")]
        assert await settle(peer, old, Done(result={"text": "abcdef", "pid": 1}))
        await running


def _of_peer(award: Award) -> Job:
    return msgspec.structs.replace(award.job, id=JobId("foreign"), owner=PEER, reply=None)


async def _busy(mesh: Mesh, count: int) -> bool:
    return next(view.presence.running for view in await mesh.nodes() if view.here) >= count


async def test_the_result_of_a_durable_job_waits_for_an_owner_that_is_away(
    node: NodeProcess, peer: ScriptedPeer
) -> None:
    """The attempt outlives the owner's silence, its result is offered until it is taken, and stays known till then."""
    params = {"text": "kept", "delay_s": 1.5 * OWNER_SILENT_S}
    job = Job(id=JobId("kept"), owner=PEER, capability="test.echo", params=params, work={}, durable=True)
    subject, offered, away = subjects.node(node.local.node, "lease"), list[Settle](), True

    async def take(msg: Msg) -> None:
        offered.append(decode(msg.data, Settle))
        if not away:
            await msg.respond(encode(Settled(accepted=True)))

    async def unknown() -> tuple[tuple[JobId, int], ...]:
        check = LeaseCheck(owner=PEER, attempts=((job.id, 1),))
        state: LeaseState = decode((await peer.nc.request(subject, encode(check), timeout=5)).data, LeaseState)
        return state.unknown

    async def forgotten() -> bool:
        return bool(await unknown())

    await peer.nc.subscribe(subjects.node(PEER, "settle"), cb=take)
    award = encode(Award(job=job, attempt=1))
    await peer.nc.request(subjects.node(node.local.node, "award"), award, timeout=5)
    await eventually(lambda: offered, 4 * OWNER_SILENT_S, "no result was offered")
    assert not await unknown()
    away = False
    await eventually(forgotten, 20, "the result was not offered again")
    assert {type(settle.outcome) for settle in offered} == {Done}


async def test_an_owner_that_restarts_goes_on_counting(node: NodeProcess, peer: ScriptedPeer) -> None:
    """Pieces kept in the events stream, and those that come while it is read, are one stream."""
    bus = Bus("test")
    await bus.connect(node.local.url, Path(node.node_creds))
    reply = "mesh.events.scripted.kept"
    job = Job(id=JobId("kept"), owner=PEER, capability="test.echo", params=ASKED, work={}, reply=reply)
    award = Award(job=job, attempt=1)
    delivered = Delivered.of(echo, bus, job)
    assert delivered is not None
    kept: list[JobEvent] = [_award_event(job.id), *(_piece(job.id, n, letter) for n, letter in enumerate("abc"))]

    async def read() -> list[JobEvent]:
        await send(peer, msgspec.structs.replace(award, chunks=2), "cd")
        await peer.nc.flush()
        await bus.flush()
        return kept

    await delivered.rejoin(job, 1, 0, read)
    await send(peer, msgspec.structs.replace(award, chunks=4), "e")
    await eventually(lambda: len(delivered.pieces.data) == 5, 20, "a piece is missing")
    assert delivered.rest(job).params["first"] == 5
    delivered.close()
    await bus.close()


def _piece(job: JobId, n: int, letter: str) -> Chunk:
    return Chunk(job=job, seq=n, attempt=1, data={"text": letter, "n": n})


def _award_event(job: JobId) -> Awarded:
    return Awarded(job=job, node=PEER, name="scripted", attempt=1, promised_s=1)


# -- a caller that comes back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("winner", ["a", "scripted"])
async def test_a_caller_that_lost_its_connection_gets_what_it_lacks_and_the_rest(
    node: NodeProcess, peer: ScriptedPeer, slow: None, winner: str
) -> None:
    asked = ASKED | {"job": "moved", "stream": True, "policy": {"prefer": [winner]}}
    async with mesh_of(node) as mesh:
        before = _stream(mesh, asked)
        sending = asyncio.ensure_future(_write_slowly(peer)) if winner == "scripted" else None
        have: list[Chunk] = []
        async for event in before:
            have += [event] if isinstance(event, Chunk) else []
            if len(have) == 3:
                break
        has = {"chunks": [piece.data for piece in have[:2]], "attempt": 1}
        seen = [event async for event in _stream(mesh, asked | {"resume": has})]
        if sending is not None:
            await sending
    assert [event.seq for event in seen if isinstance(event, Chunk)] == [2, 3, 4, 5]
    assert text_of(seen) == "cdef"
    assert isinstance(seen[-1], Finished)
    assert (seen[-1].result["text"], seen[-1].attempt) == ("abcdef", 1)


async def test_a_caller_that_has_more_than_the_owner_is_believed(
    node: NodeProcess, peer: ScriptedPeer, slow: None
) -> None:
    """The owner missed a piece: what it has of the attempt has a hole, so the attempt is given up for a new one."""
    asked = ASKED | {"job": "holed", "stream": True, "policy": {"prefer": ["scripted"]}}
    async with mesh_of(node) as mesh:
        reading = asyncio.ensure_future(_first(mesh, asked, 2))
        award = await awarded(peer)
        await send(peer, award, "ab")
        await reading
        has = {"chunks": [{"text": letter, "n": n} for n, letter in enumerate("abcd")], "attempt": 1}
        running = asyncio.ensure_future(_all(mesh, asked | {"resume": has}))
        second = await awarded(peer, 2)
        assert (second.attempt, second.chunks, second.job.params["first"]) == (2, 4, 4)
        await send(peer, second, "ef")
        assert await settle(peer, second, Done(result={"text": "ef", "pid": 1}, chunks=6, after=4))
        seen = await running
        record = await mesh.job("holed")
    assert text_of(seen) == "ef"
    assert isinstance(seen[-1], Finished)
    assert seen[-1].result["text"] == "abcdef"
    assert len(record.attempts) == 2


async def test_nobody_else_can_have_a_stream_sent_to_them(node: NodeProcess) -> None:
    asked = ASKED | {"job": "mine", "stream": True, "delay_s": 0.3}
    async with mesh_of(node) as mesh, Mesh(node.local.url, creds=node.node_creds) as other:
        running = asyncio.ensure_future(_all(mesh, asked))
        await eventually(lambda: _busy(mesh, 1), 20, "it did not start")
        with pytest.raises(DuplicateJob):
            await _all(other, asked | {"resume": {}})
        assert text_of(await running) == "abcdef"


async def test_a_job_unknown_here_is_taken_on_after_the_pieces_that_came(node: NodeProcess) -> None:
    has = {"chunks": [{"text": letter, "n": n} for n, letter in enumerate("abcd")], "attempt": 7}
    asked = ASKED | {"job": "orphan", "stream": True, "resume": has}
    async with mesh_of(node) as mesh:
        seen = await _all(mesh, asked)
    first, last = seen[0], seen[-1]
    assert isinstance(first, Awarded)
    assert first.attempt > 7, "the old owner's attempts are void"
    assert first.chunks == 4
    assert text_of(seen) == "ef"
    assert isinstance(last, Finished)
    assert last.result["text"] == "abcdef"


# -- an owner by script ------------------------------------------------------------------------------------------------


class ScriptedOwner:
    """Takes requests for a capability that no daemon has; the test answers them."""

    def __init__(self, peer: ScriptedPeer) -> None:
        self.nc = peer.nc
        self.requests: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()

    async def start(self) -> None:
        async def take(msg: Msg) -> None:
            self.requests.put_nowait((msg.reply, decode(msg.data, dict[str, Any])))

        await self.nc.subscribe(subjects.capability("odd.one"), cb=take)
        await self.nc.flush()

    async def request(self) -> tuple[str, dict[str, Any]]:
        return await asyncio.wait_for(self.requests.get(), 30)

    async def tell(self, reply: str, *events: JobEvent) -> None:
        for event in events:
            await self.nc.publish(reply, encode(event))


def piece(attempt: int, seq: int) -> Chunk:
    return Chunk(job=JobId("odd"), seq=seq, attempt=attempt, data={"n": seq})


def award_of(attempt: int, chunks: int = 0) -> Awarded:
    return Awarded(
        job=JobId("odd"), node=NodeId("n"), name="n", attempt=attempt, promised_s=1, chunks=chunks, model="m"
    )


END = Finished(job=JobId("odd"), node=NodeId("n"), name="n", attempt=1, result={})


@pytest.mark.parametrize("lost", ["a piece", "the owner"])
async def test_a_stream_is_taken_up_again_where_it_broke(node: NodeProcess, peer: ScriptedPeer, lost: str) -> None:
    owner = ScriptedOwner(peer)
    await owner.start()
    async with mesh_of(node) as mesh:

        async def read() -> list[JobEvent]:
            return [event async for event in mesh.stream("odd.one", {"x": 1}, job="odd")]

        reading = asyncio.ensure_future(read())
        reply, first = await owner.request()
        assert "resume" not in first
        await owner.tell(reply, award_of(1), piece(1, 0), piece(1, 1))
        if lost == "a piece":
            await owner.tell(reply, piece(1, 3))
        reply, again = await owner.request()  # or silence: the daemon, when asked, knows no such job
        assert again == first | {"resume": {"chunks": [{"n": 0}, {"n": 1}], "attempt": 1, "model": "m"}}
        await owner.tell(reply, award_of(101, 2), piece(1, 2), piece(101, 2), END)
        seen = await reading
    pieces = [(event.attempt, event.seq) for event in seen if isinstance(event, Chunk)]
    assert pieces == [(1, 0), (1, 1), (101, 2)]


@pytest.mark.parametrize("comes", [True, False])
async def test_a_last_piece_that_the_end_overtook_is_waited_for(
    node: NodeProcess, peer: ScriptedPeer, comes: bool
) -> None:
    """The winner sends the pieces and the owner the end: from two machines they come on different ways."""
    owner = ScriptedOwner(peer)
    await owner.start()
    end = msgspec.structs.replace(END, chunks=4)
    async with mesh_of(node) as mesh:
        reading = asyncio.ensure_future(_read(mesh.stream("odd.one", {"x": 1}, job="odd")))
        reply, _ = await owner.request()
        await owner.tell(reply, award_of(1), piece(1, 0), piece(1, 1), piece(1, 2), end)
        await peer.nc.publish(reply, b"")
        if comes:
            await owner.tell(reply, piece(1, 3))
        seen = await asyncio.wait_for(reading, 20)
    assert [event.seq for event in seen if isinstance(event, Chunk)] == [0, 1, 2, 3][: 4 if comes else 3]
    assert seen[-1] == end, "the result is whole in any case"


# -- helpers -----------------------------------------------------------------------------------------------------------


async def _read(events: AsyncIterator[JobEvent]) -> list[JobEvent]:
    return [event async for event in events]


def _stream(mesh: Mesh, message: dict[str, Any]) -> AsyncIterator[JobEvent]:
    return mesh.connection.stream(subjects.capability("test.echo"), message, JobEvent, idle_timeout_s=15)


async def _all(mesh: Mesh, message: dict[str, Any]) -> list[JobEvent]:
    return [event async for event in _stream(mesh, message)]


async def _first(mesh: Mesh, message: dict[str, Any], pieces: int) -> None:
    async for event in _stream(mesh, message):
        if isinstance(event, Chunk) and event.seq == pieces - 1:
            return


async def _write_slowly(peer: ScriptedPeer) -> None:
    award = await awarded(peer)
    for n, letter in enumerate("abcdef"):
        await peer.nc.publish(str(award.job.reply), encode(_piece(award.job.id, n, letter), Format(award.job.format)))
        await asyncio.sleep(0.2)
    await settle(peer, award, Done(result={"text": "abcdef", "pid": 1}, chunks=6))
