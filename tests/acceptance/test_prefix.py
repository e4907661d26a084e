"""The next turn of a conversation goes to the node that has read it, because its bid is better."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import psutil
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg

from outbid import Mesh, Policy
from outbid_contracts import subjects
from outbid_contracts.codec import decode, encode
from outbid_contracts.ids import NodeId, new_bid_id
from outbid_contracts.messages import (
    Accepted,
    Award,
    Bid,
    CallForProposals,
    Considered,
    Done,
    LeaseState,
    Offer,
    Presence,
    Settle,
)
from tests.fleet import Fleet, NodeProcess, eventually, fleet, mesh_of

SAID = (
    "I want to plan a long journey by train through the mountains in late autumn, with two children and an old dog. ",
    "We would rather stay three nights in one place than move on every day, and nobody of us likes big hotels. ",
    "The younger child gets sick on winding roads, so no coaches please, and the dog cannot walk for an hour. ",
)
LONG = 3
"""Times that each is said, so that reading anew takes a second or more and does not get lost in the noise."""


class Talk:
    """A conversation through one node's mesh."""

    numbers = itertools.count()

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.messages = [{"role": "system", "content": f"Talk {next(self.numbers)}: you help travellers."}]
        self.bids: dict[str, Considered] = {}
        """Of the last turn, by the node's name."""

    async def say(self, text: str, at: str = "", seed: int | None = None) -> str:
        """The node that answered; `at`: the one that the caller prefers."""
        self.messages.append({"role": "user", "content": text})
        policy = Policy(prefer=(at,)) if at else None
        stream = self.mesh.chat(self.messages, max_tokens=4, temperature=0, seed=seed, policy=policy)
        reply = await stream.reply()
        self.messages.append({"role": "assistant", "content": reply.text})
        (sheet,) = (await self.mesh.job(stream.job)).sheets
        self.bids = {considered.name: considered for considered in sheet.bids}
        return reply.name

    async def begin(self, at: str, turns: int = 1) -> None:
        for text in SAID[:turns]:
            assert await self.say(text * LONG, at) == at

    def held(self, name: str) -> float:
        """Tokens that the node did not count, in its last bid."""
        return self.bids[name].bid.held.get("prompt_tokens", 0.0)


@pytest_asyncio.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Fleet]:
    """`here`, where the callers are, and `there`; both with the model loaded."""
    with fleet(tmp_path) as running:
        here, _ = await running.start("here", "there", flags=())
        async with mesh_of(here) as mesh:
            hellos = (mesh.chat("Hello.", max_tokens=4, policy=Policy(prefer=(name,))) for name in ("here", "there"))
            await asyncio.gather(*(hello.reply() for hello in hellos))
        yield running


@pytest.mark.model
async def test_the_next_turn_goes_where_the_conversation_was_read_as_long_as_it_is_held_there(nodes: Fleet) -> None:
    async with mesh_of(nodes.nodes[0]) as mesh:
        for holder, other in (("there", "here"), ("here", "there")):
            talk = Talk(mesh)
            await talk.begin(at=holder, turns=2)
            assert await talk.say(SAID[2]) == holder
            assert talk.held(other) == 0
            assert talk.held(holder) > 150
            assert f"holds {talk.held(holder):.0f} of " in talk.bids[holder].bid.why
            assert talk.bids[holder].bid.finish_s < talk.bids[other].bid.finish_s / 2

        talk.messages[0] = {"role": "system", "content": "You help sailors."}
        await talk.say("Another system prompt: all of it is new.")
        assert (talk.held("here"), talk.held("there")) == (0, 0)

        talk = Talk(mesh)
        await talk.begin(at="there")
        await talk.say("A seed has all of it read anew.", seed=1)
        assert (talk.held("here"), talk.held("there")) == (0, 0)

        talk = Talk(mesh)
        await talk.begin(at="there")
        await _kill_runner(mesh, nodes.nodes[1])
        await mesh.chat("Say hello.", max_tokens=4, policy=Policy(prefer=("there",))).reply()
        await talk.say("Another runner is there now, which has not read it.")
        assert (talk.held("here"), talk.held("there")) == (0, 0)


async def _kill_runner(mesh: Mesh, node: NodeProcess) -> None:
    """Returns when all nodes know that it is gone."""
    children = psutil.Process(node.pid).children(recursive=True)
    next(child for child in children if "runner_kit" in " ".join(child.cmdline())).kill()

    async def cold() -> bool:
        presences = [view.presence for view in await mesh.nodes() if view.presence.name == node.name]
        return any(not o.warm for presence in presences for o in presence.offers if o.capability == "llm.chat")

    await eventually(cold, 30, "nobody heard that the runner is gone")


# -- on a mesh of which not all are asked ------------------------------------------------------------------------------

MANY = 12
OFFER = Offer(
    capability="llm.chat",
    model="made-up",
    warm=True,
    slots=4,
    free=4,
    load_s=0,
    fixed_s=0.1,
    rates={"prompt_tokens": 0.01, "new_tokens": 0.001},
    default=True,
)


class Crowd:
    """Nodes that are all alike, as far as one hears of them. They all bid the same and answer with one word."""

    def __init__(self, nc: Client, owner: NodeId) -> None:
        self.nc, self.owner = nc, owner
        self.names = [NodeId(f"node{number}") for number in range(MANY)]
        self.asked: list[str] = []
        """By the last call for proposals."""

    async def start(self) -> None:
        for node in self.names:
            await self.nc.subscribe(subjects.node(node, "cfp"), cb=self._bid)
            await self.nc.subscribe(subjects.node(node, "award"), cb=self._take)
            await self.nc.subscribe(subjects.node(node, "lease"), cb=self._alive)
            presence = Presence(node=node, name=node, version="9", boot="b", seq=1, state="up", offers=(OFFER,))
            await self.nc.publish(subjects.presence(node), encode(presence))

    async def _bid(self, msg: Msg) -> None:
        node, cfp = NodeId(msg.subject.split(".")[2]), decode(msg.data, CallForProposals)
        self.asked.append(node)
        bid = Bid(
            bid_id=new_bid_id(),
            node=node,
            job=cfp.job,
            expires_ms=0,
            start_s=0,
            finish_s=1.0,
            finish_p90_s=1.5,
            energy_j=1,
            cost_usd=0,
            warm=True,
            zone="lan",
            model=OFFER.model,
        )
        await self.nc.publish(msg.reply, encode(bid))

    async def _alive(self, msg: Msg) -> None:
        await self.nc.publish(msg.reply, encode(LeaseState(node=NodeId(msg.subject.split(".")[2]))))

    async def _take(self, msg: Msg) -> None:
        node, award = NodeId(msg.subject.split(".")[2]), decode(msg.data, Award)
        await self.nc.publish(msg.reply, encode(Accepted(node=node, free=3)))
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        result = {"text": "yes", "model": "made-up", "finish_reason": "stop", "usage": usage}
        settle = Settle(job=award.job.id, attempt=award.attempt, node=node, outcome=Done(result=result), free=4)
        await self.nc.publish(subjects.node(self.owner, "settle"), encode(settle), reply=self.nc.new_inbox())


async def test_of_many_nodes_the_one_that_answered_the_turn_before_is_always_asked(tmp_path: Path) -> None:
    with fleet(tmp_path) as running:
        (owner,) = await running.start("owner", flags=())
        nc = await nats.connect(owner.local.url, user_credentials=owner.node_creds)
        crowd = Crowd(nc, owner.local.node)
        await crowd.start()
        async with mesh_of(owner) as mesh:

            async def seen() -> bool:
                return len(await mesh.nodes()) == MANY + 1

            await eventually(seen, 20, "the crowd was not seen")
            talk, before = [{"role": "user", "content": "Shall we begin?"}], ""
            for _ in range(8):
                crowd.asked.clear()
                reply = await mesh.chat(talk, model="made-up").reply()
                assert len(crowd.asked) <= 6
                assert before in ("", *crowd.asked)
                before = str(reply.name)
                talk += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": "And then?"}]
        await nc.close()
