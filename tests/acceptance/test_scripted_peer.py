"""A real daemon beside a peer that follows a script: refusals, lies, silence and late results over the real bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg

from outbid import Mesh
from outbid_contracts import subjects
from outbid_contracts.codec import decode, encode
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import BidId, NodeId
from outbid_contracts.messages import (
    Accepted,
    Award,
    Bid,
    CallForProposals,
    Decline,
    Declined,
    Done,
    LeaseCheck,
    LeaseState,
    Offer,
    Presence,
    Settle,
    Settled,
)
from outbid_contracts.policy import Policy
from tests.fleet import TEST_CAPABILITY, NodeProcess, eventually, fleet, mesh_of

PEER = NodeId("scripted")
LONG = {"text": "x", "delay_s": 0.1}
"""Over 50 ms of work, so that bids are asked for."""


class ScriptedPeer:
    """Announces a capability as a node would; what it answers is up to the test."""

    def __init__(self, nc: Client, capability: str = "test.echo") -> None:
        self.nc = nc
        self.capability = capability
        self.seq = 0
        self.awards: list[Award] = []
        self.on_cfp: Callable[[CallForProposals], Any] = self.good_bid
        self.on_award: Callable[[Award], Any] = lambda award: Accepted(node=PEER, free=3)
        self.on_lease: Callable[[LeaseCheck], Any] = lambda check: LeaseState(node=PEER)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        for verb in ("cfp", "award", "lease"):
            await self.nc.subscribe(subjects.node(PEER, verb), cb=getattr(self, f"_{verb}"))
        self._task = asyncio.create_task(self._beat())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
        await self.nc.close()

    def good_bid(self, cfp: CallForProposals, finish_s: float = 0.001) -> Bid:
        return Bid(
            bid_id=BidId("b"),
            node=PEER,
            job=cfp.job,
            expires_ms=0,
            start_s=0,
            finish_s=finish_s,
            finish_p90_s=finish_s,
            energy_j=0,
            cost_usd=0,
            warm=True,
            zone="lan",
        )

    async def settle(self, owner: NodeId, award: Award, text: str, attempt: int | None = None, free: int = 0) -> bool:
        """Hand in a result; whether the owner took it."""
        number, outcome = attempt or award.attempt, Done(result={"text": text})
        settle = Settle(job=award.job.id, attempt=number, node=PEER, outcome=outcome, free=free)
        reply = await self.nc.request(subjects.node(owner, "settle"), encode(settle), timeout=2)
        settled: Settled = decode(reply.data, Settled)
        return settled.accepted

    async def _beat(self) -> None:
        offer = Offer(
            capability=self.capability,
            model=None,
            warm=True,
            slots=4,
            free=4,
            load_s=0,
            fixed_s=0,
            rates={"seconds": 0.9},
            default=True,
        )
        while True:
            self.seq += 1
            presence = Presence(
                node=PEER, name="scripted", version="9", boot="b", seq=self.seq, state="up", offers=(offer,)
            )
            await self.nc.publish(subjects.presence(PEER), encode(presence))
            await asyncio.sleep(0.2)

    async def _cfp(self, msg: Msg) -> None:
        await self._answer(msg, self.on_cfp(decode(msg.data, CallForProposals)))

    async def _award(self, msg: Msg) -> None:
        award = decode(msg.data, Award)
        self.awards.append(award)
        await self._answer(msg, self.on_award(award))

    async def _lease(self, msg: Msg) -> None:
        await self._answer(msg, self.on_lease(decode(msg.data, LeaseCheck)))

    async def _answer(self, msg: Msg, answer: Any) -> None:
        if answer is not None:
            await self.nc.publish(msg.reply, answer if isinstance(answer, bytes) else encode(answer))


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeProcess]:
    with fleet(tmp_path) as running:
        (a,) = await running.start("a", flags=TEST_CAPABILITY)
        async with mesh_of(a) as mesh:
            await mesh.run("test.echo", LONG, timeout_s=20)
        yield a


@pytest_asyncio.fixture
async def peer(node: NodeProcess) -> AsyncIterator[ScriptedPeer]:
    scripted = ScriptedPeer(await nats.connect(node.local.url, user_credentials=node.node_creds))
    await scripted.start()
    async with mesh_of(node) as mesh:

        async def seen() -> bool:
            return len(await mesh.nodes()) == 2

        await eventually(seen, 20, "the scripted peer was not seen")
    yield scripted
    await scripted.stop()


async def run(node: NodeProcess, job: str, **more: Any) -> dict[str, Any]:
    async with mesh_of(node) as mesh:
        return await mesh.run("test.echo", LONG | more, job=job, timeout_s=20, policy=Policy(prefer=("scripted",)))


async def test_refused_award_falls_to_the_next_bid_without_a_new_call(node: NodeProcess, peer: ScriptedPeer) -> None:
    calls = 0

    def count(cfp: CallForProposals) -> Bid:
        nonlocal calls
        calls += 1
        return peer.good_bid(cfp)

    peer.on_cfp = count
    peer.on_award = lambda award: Declined(node=PEER, code="busy", reason="just taken", temporary=True)
    result = await run(node, "refused")
    assert result["name"] == "a"
    assert calls == 1
    async with mesh_of(node) as mesh:
        (sheet,) = (await mesh.job("refused")).sheets
    assert "refused" in sheet.why
    assert [(d.node, d.code) for d in sheet.declines] == [(PEER, "busy")]


async def test_a_job_is_done_by_whoever_won_and_settled_once(node: NodeProcess, peer: ScriptedPeer) -> None:
    running = asyncio.ensure_future(run(node, "once"))
    await eventually(lambda: peer.awards, 20, "no award came")
    (award,) = peer.awards
    owner = node.local.node
    assert not await peer.settle(owner, award, "stale", attempt=award.attempt + 1)
    assert await peer.settle(owner, award, "mine")
    assert not await peer.settle(owner, award, "again")
    result = await running
    assert (result["text"], result["name"]) == ("mine", "scripted")


async def test_a_result_after_the_lease_was_lost_is_refused(node: NodeProcess, peer: ScriptedPeer) -> None:
    peer.on_lease = lambda check: LeaseState(node=PEER, unknown=check.attempts)
    result = await run(node, "lost")
    assert result["name"] == "a"
    assert result["attempt"] == 2
    assert not await peer.settle(node.local.node, peer.awards[0], "too late")


async def test_an_award_that_gets_no_answer_moves_on_and_cannot_settle(node: NodeProcess, peer: ScriptedPeer) -> None:
    peer.on_award = lambda award: None
    result = await run(node, "silent")
    assert result["name"] == "a"
    assert result["attempt"] == 2
    assert not await peer.settle(node.local.node, peer.awards[0], "who am I")


async def test_a_result_counts_though_the_answer_to_its_award_was_lost(node: NodeProcess, peer: ScriptedPeer) -> None:
    """The ledger of the owner was killed in between: what was accepted must not be thrown away."""
    peer.on_award = lambda award: None
    running = asyncio.ensure_future(run(node, "half-heard"))
    await eventually(lambda: peer.awards, 20, "no award came")
    assert await peer.settle(node.local.node, peer.awards[0], "mine")
    result = await running
    assert (result["text"], result["attempt"], result["name"]) == ("mine", 1, "scripted")
    assert len(peer.awards) == 1


async def test_a_node_that_does_not_answer_the_call_is_noted_as_late(node: NodeProcess, peer: ScriptedPeer) -> None:
    peer.on_cfp = lambda cfp: None
    async with mesh_of(node) as mesh:
        result = await run(node, "late")
        (sheet,) = (await mesh.job("late")).sheets
    assert result["name"] == "a"
    assert [d.code for d in sheet.declines] == ["late"]
    assert sheet.took_ms < 500


@pytest.mark.parametrize(
    "answer",
    [b"", b"\xc1garbage", encode({"type": "bid"}), encode(Decline(node=PEER, job="other", code="x", reason="x"))],  # type: ignore[arg-type]
)
async def test_nonsense_for_a_bid_harms_only_its_sender(node: NodeProcess, peer: ScriptedPeer, answer: bytes) -> None:
    peer.on_cfp = lambda cfp: answer
    assert (await run(node, "nonsense"))["name"] == "a"


async def test_a_bid_in_another_nodes_name_is_ignored(node: NodeProcess, peer: ScriptedPeer) -> None:
    peer.on_cfp = lambda cfp: encode(peer.good_bid(cfp)).replace(b"scripted", b"imposter")
    assert (await run(node, "imposter"))["name"] == "a"


async def test_nonsense_for_an_award_reply_moves_on(node: NodeProcess, peer: ScriptedPeer) -> None:
    peer.on_award = lambda award: b"\xc1"
    assert (await run(node, "odd"))["name"] == "a"


async def test_a_peer_that_leaves_in_mid_job_loses_it_at_once(node: NodeProcess, peer: ScriptedPeer) -> None:
    running = asyncio.ensure_future(run(node, "leaver"))
    await eventually(lambda: peer.awards, 20, "no award came")
    started = asyncio.get_running_loop().time()
    await peer.stop()
    assert (await running)["name"] == "a"
    assert asyncio.get_running_loop().time() - started < 2.0


async def test_a_newer_peer_with_unknown_fields_is_understood(node: NodeProcess, peer: ScriptedPeer) -> None:
    def newer(award: Award) -> bytes:
        reply = {"type": "accepted", "v": 7, "node": PEER, "free": 1, "mood": "sunny", "extra": {"a": [1]}}
        return encode(reply)

    peer.on_award = newer
    running = asyncio.ensure_future(run(node, "newer"))
    await eventually(lambda: peer.awards, 20, "no award came")
    assert await peer.settle(node.local.node, peer.awards[0], "from the future")
    assert (await running)["text"] == "from the future"


async def test_cancelling_tells_the_node_that_runs_it(node: NodeProcess, peer: ScriptedPeer) -> None:
    told: asyncio.Queue[Msg] = asyncio.Queue()

    async def take(msg: Msg) -> None:
        told.put_nowait(msg)

    await peer.nc.subscribe(subjects.node(PEER, "cancel"), cb=take)
    running = asyncio.ensure_future(run(node, "stopme"))
    await eventually(lambda: peer.awards, 20, "no award came")
    async with mesh_of(node) as mesh:
        cancelling = asyncio.ensure_future(mesh.cancel("stopme"))
        await asyncio.wait_for(told.get(), 20)
        record = await cancelling  # the peer never says that it stopped: the job ends all the same
    assert record.state == "cancelled"
    with pytest.raises(OutbidError):
        await running


async def test_mesh_stays_usable_beside_all_this(node: NodeProcess, peer: ScriptedPeer) -> None:
    peer.on_cfp = lambda cfp: Decline(node=PEER, job=cfp.job, code="policy", reason="not today")

    async def ask(mesh: Mesh) -> str:
        return str((await mesh.run("test.echo", LONG, timeout_s=20))["name"])

    async with mesh_of(node) as mesh:
        assert await asyncio.gather(*(ask(mesh) for _ in range(20))) == ["a"] * 20


async def test_a_node_whose_answer_to_the_award_was_unreadable_cannot_settle(
    node: NodeProcess, peer: ScriptedPeer
) -> None:
    peer.on_award = lambda award: b"\xc1"
    running = asyncio.ensure_future(run(node, "fenced", delay_s=1.5))
    async with mesh_of(node) as mesh:

        async def elsewhere() -> bool:
            record = await mesh.job("fenced") if peer.awards else None
            return record is not None and record.state == "running" and record.node == node.local.node

        await eventually(elsewhere, 20, "the job did not go on elsewhere")
    assert not await peer.settle(node.local.node, peer.awards[0], "forged")
    assert (await running)["text"] == "x"


async def test_a_node_that_promises_the_impossible_soon_wins_no_more(node: NodeProcess, peer: ScriptedPeer) -> None:
    """It bids 1 ms for a tenth of a second of work, and takes longer than a machine that does much else."""
    late: set[asyncio.Task[bool]] = set()

    async def settle_late(award: Award) -> bool:
        await asyncio.sleep(1.5)
        return await peer.settle(node.local.node, award, "late", free=4)

    def take(award: Award) -> Accepted:
        late.add(asyncio.create_task(settle_late(award)))
        return Accepted(node=PEER, free=3)

    peer.on_award = take
    async with mesh_of(node) as mesh:
        for number in range(10):
            await mesh.run("test.echo", LONG, policy="fastest", job=f"lied-to-{number}", timeout_s=20)
        sheets = [(await mesh.job(f"lied-to-{number}")).sheets[-1] for number in range(10)]
    wins = [sheet.winner == PEER for sheet in sheets]
    assert wins[:2] == [True, True]
    assert not any(wins[5:])
    liar = next(considered for considered in sheets[-1].bids if considered.bid.node == PEER)
    assert liar.bid.finish_s < 0.1, "it still lies"
    assert liar.stretch > 5
