"""No message of a stranger kills a daemon, sent by clients that nobody here wrote: NATS' own JavaScript libraries."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outbid_contracts.codec import encode
from outbid_contracts.ids import BidId, JobId, NodeId
from outbid_contracts.messages import (
    Award,
    CallForProposals,
    CancelAttempt,
    Capacity,
    Done,
    Job,
    LeaseCheck,
    Offer,
    Presence,
    Settle,
)
from outbid_contracts.requests import JobQuery
from tests.acceptance.node_peers.driver import Peer, PeerError, install
from tests.fleet import NodeProcess, fleet

ECHO = "mesh.test.echo"
SEED = 20_240_806


@pytest.mark.usefixtures("alive")
class TestGarbage:
    """No message of a stranger kills the daemon; where a reply was asked for, an error comes back."""

    @pytest.fixture
    def peer(self, node: NodeProcess) -> Iterator[Peer]:
        """A node gone wrong: what only nodes may say, the servers take from nobody else."""
        with Peer(node.local.url, node.node_creds) as running:
            yield running

    def test_what_only_nodes_say(self, peer: Peer, node: NodeProcess) -> None:
        me = node.local.node
        targets = [target(f"mesh.node.{me}.{verb}", *good) for verb, good in peer_messages(me).items()]
        targets.append(target(f"mesh.node.{me}.dance"))
        found = peer.call("garbage", targets=targets, count=150, seed=SEED)
        for subject, answers in found.items():
            assert answers["codes"].get("invalid_request", answers["codes"].get("internal", 0)) > 40, (subject, answers)
            assert "unreadable reply" not in answers["codes"]
            # a cancellation that can be read has no answer
            assert not answers["unanswered"] or subject.endswith(".cancel"), (subject, answers)

    def test_what_nodes_say_to_all(self, peer: Peer) -> None:
        targets = [
            target("mesh.presence.x", presence("x1")),
            target("mesh.capacity.x", Capacity(node=NodeId("x1"), capability="test.echo", model=None, free=3)),
            target("mesh.hello"),
        ]
        peer.call("garbage", targets=targets, count=150, seed=SEED, wait_ms=50)

    def test_what_faces_ask(self, peer: Peer) -> None:
        subjects = [ECHO, "mesh.test.noop", "mesh.jobs.list", "mesh.jobs.get", "mesh.jobs.cancel"]
        targets = [{"subject": subject, "good": [as_text(b'{"text": "x", "job": "j"}')]} for subject in subjects]
        for subject, answers in peer.call("garbage", targets=targets, count=60, seed=SEED, wait_ms=3000).items():
            assert not answers["unanswered"], (subject, answers)

    def test_an_award_whose_reply_subject_is_no_subject(self, peer: Peer, node: NodeProcess) -> None:
        me = node.local.node
        for n, reply in enumerate(("a b", "a\r\nPUB evil 0\r\n", "", "..", ">")):
            job = Job(
                id=JobId(f"odd-{n}"), owner=me, capability="test.echo", params={"text": "x"}, work={}, reply=reply
            )
            send(peer, f"mesh.node.{me}.award", Award(job=job, attempt=1))
        for n, owner in enumerate(("a b", "a\r\nPUB evil 0\r\n", "", "*")):
            job = Job(id=JobId(f"own-{n}"), owner=NodeId(owner), capability="test.echo", params={}, work={})
            send(peer, f"mesh.node.{me}.award", Award(job=job, attempt=1))

    def test_an_award_whose_parameters_are_wrong(self, peer: Peer, node: NodeProcess) -> None:
        me = node.local.node
        wrong: list[dict[str, Any]] = [{"text": 5}, {"chunks": "many"}, {"text": "x", "chunks": -3}, {"delay_s": [1]}]
        for n, params in enumerate(wrong):
            job = Job(id=JobId(f"bad-{n}"), owner=me, capability="test.echo", params=params, work={})
            send(peer, f"mesh.node.{me}.award", Award(job=job, attempt=1))

    @pytest.mark.parametrize("name", ["a b", "x\r\nPUB evil 0\r\n", "", ">", "mesh.*"])
    def test_an_offer_of_a_node_that_cannot_be(self, peer: Peer, name: str) -> None:
        """It bids best on paper, so the award goes there first; the job must end well elsewhere."""
        peer.call("publish", subject="mesh.presence.x", base64=as_text(encode(presence(name))))
        assert peer.request(ECHO, json={"text": "x", "policy": {"prefer": [name]}})["body"]["name"] == "a"
        assert peer.request("mesh.jobs.list", json={})["body"]["jobs"]
        peer.call("publish", subject="mesh.presence.x", base64=as_text(encode(presence(name, state="leaving"))))

    @pytest.mark.parametrize("number", [float("nan"), float("inf"), -1e308])
    def test_an_offer_with_numbers_that_cannot_be(self, peer: Peer, number: float) -> None:
        offer = presence("odd", load_s=number, fixed_s=number, rates={"chunks": number}, spread=number, watts=number)
        peer.call("publish", subject="mesh.presence.odd", base64=as_text(encode(offer)))
        for _ in range(3):
            reply = peer.request(ECHO, json={"text": "x", "chunks": 100, "delay_s": 0.001})
            assert reply["body"]["text"] == "x"
            assert peer.request("mesh.jobs.get", json={"job": reply["body"]["job"]})["body"]["state"] == "done"
        peer.call("publish", subject="mesh.presence.odd", base64=as_text(encode(presence("odd", state="leaving"))))


@pytest.mark.parametrize("what", ["reply", "node"])
def test_a_subject_longer_than_the_bus_takes_does_not_cut_the_node_off(what: str, tmp_path: Path) -> None:
    install()
    long = "x" * 5000
    with fleet(tmp_path) as nodes:
        (b,) = asyncio.run(nodes.start("b"))
        me = b.local.node
        with Peer(b.local.url, b.node_creds) as peer:
            if what == "reply":
                job = Job(id=JobId("long"), owner=me, capability="test.echo", params={}, work={}, reply=long)
                send(peer, f"mesh.node.{me}.award", Award(job=job, attempt=1))
            else:
                send(peer, "mesh.presence.x", presence(long))
                with contextlib.suppress(PeerError):
                    peer.request(ECHO, json={"text": "x", "policy": {"prefer": [long]}}, timeout_ms=3000)
            time.sleep(0.5)
            assert peer.request(ECHO, text="alive?", timeout_ms=3000)["body"]["text"] == "alive?"


def send(peer: Peer, subject: str, message: Any) -> None:
    peer.call("publish", subject=subject, base64=as_text(encode(message)))


def as_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def target(subject: str, *good: Any) -> dict[str, Any]:
    return {"subject": subject, "good": [as_text(encode(message)) for message in good]}


def peer_messages(me: NodeId) -> dict[str, list[Any]]:
    """Good messages of every verb, to be damaged."""
    job = Job(id=JobId("damaged"), owner=me, capability="test.echo", params={"text": "x"}, work={"chunks": 1.0})
    cfp = CallForProposals(job=JobId("damaged"), owner=NodeId("other"), capability="test.echo", work={"chunks": 1.0})
    return {
        "award": [Award(job=job, attempt=1, bid_id=BidId("b"))],
        "settle": [Settle(job=job.id, attempt=1, node=me, outcome=Done(result={"text": "x"}))],
        "lease": [LeaseCheck(owner=me, attempts=((job.id, 1),))],
        "cfp": [cfp],
        "cancel": [CancelAttempt(job=job.id, attempt=1)],
        "jobs": [JobQuery(verb="list"), JobQuery(verb="get", job=job.id), JobQuery(verb="cancel", job=job.id)],
    }


def presence(node: str, *, state: Any = "up", **numbers: Any) -> Presence:
    fields: dict[str, Any] = {"load_s": 0.0, "fixed_s": 0.0, "rates": {}} | numbers
    offer = Offer(capability="test.echo", model=None, warm=True, slots=9, free=9, default=True, **fields)
    return Presence(node=NodeId(node), name=node, version="0", boot="b", seq=1, state=state, offers=(offer,))
