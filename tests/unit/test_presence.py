"""Who is told of whom, how often, and what becomes of a node that nobody hears any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest
from nats.aio.msg import Msg

from outbid_contracts import subjects
from outbid_contracts.codec import decode, encode
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import LeaseState, Presence
from outbid_node import heartbeat, pace, watch
from outbid_node.client import Bus
from outbid_node.heartbeat import PresenceKeeper
from outbid_node.registry import HEARD_PER_S, RAREST_S, Registry, beat_s
from outbid_node.watch import Watch
from tests.waiting import until

ME = NodeId("meme")
INBOX = "_INBOX.me"


class ScriptedBus:
    """Records what is sent. Requests are answered by the nodes that are `awake`; the others' get lost."""

    connected = True

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, str]] = []
        self.awake: set[NodeId] = set()
        self.asked: list[NodeId] = []
        self._handlers: dict[str, Callable[[Msg], Any]] = {}

    def open_inbox(self, on_message: Callable[[Msg], Any]) -> str:
        return INBOX

    async def subscribe(self, subject: str, handler: Callable[[Msg], Any]) -> None:
        self._handlers[subject] = handler

    def post(self, subject: str, data: bytes, *, reply: str = "") -> None:
        self.sent.append((subject, data, reply))

    async def call(self, subject: str, message: Any, type: Any, *, timeout_s: float) -> LeaseState:
        node = NodeId(subject.split(".")[2])
        self.asked.append(node)
        if node in self.awake:
            return LeaseState(node=node)
        await asyncio.sleep(timeout_s)
        raise TimeoutError

    async def deliver(self, kind: str, data: bytes, reply: str = "") -> None:
        await self._handlers[kind](Msg(cast(Any, None), kind, reply, data))

    def to(self, subject: str) -> list[bytes]:
        return [data for sent, data, _ in self.sent if sent == subject]


def presence(node: NodeId, boot: str = "b1", **changes: Any) -> Presence:
    return Presence(node=node, name=f"name-{node}", version="1", boot=boot, seq=1, state="up", **changes)


def crowd(registry: Registry, nodes: int) -> list[NodeId]:
    names = [NodeId(f"n{n:03}") for n in range(nodes)]
    for name in names:
        registry.receive(presence(name, beat_s=beat_s(nodes)))
    return names


async def keeper() -> tuple[PresenceKeeper, ScriptedBus]:
    bus, registry = ScriptedBus(), Registry(ME)
    seq = iter(range(1, 1000))
    kept = PresenceKeeper(
        me=ME,
        bus=cast(Bus, bus),
        registry=registry,
        describe=lambda: Presence(node=ME, name="me", version="1", boot="b", seq=next(seq), state="up"),
    )
    await kept.start()
    bus.sent.clear()
    return kept, bus


def test_a_mesh_of_any_size_is_heard_at_a_bounded_rate_and_a_small_one_each_second() -> None:
    assert [beat_s(n) for n in (1, 5, HEARD_PER_S)] == [1.0, 1.0, 1.0]
    assert all(n / beat_s(n) <= HEARD_PER_S for n in range(1, int(HEARD_PER_S * RAREST_S) + 1))
    assert beat_s(10_000) == RAREST_S


async def test_a_node_that_comes_is_answered_alone_and_only_by_who_did_not_know_it() -> None:
    _, bus = await keeper()
    for boot, answers in (("b1", 1), ("b1", 1), ("b2", 2)):
        await bus.deliver(subjects.PRESENCE_ALL, encode(presence(NodeId("other"), boot)), reply="_INBOX.other")
        assert len(bus.to("_INBOX.other")) == answers
    assert decode(bus.to("_INBOX.other")[0], Presence).node == ME
    assert bus.to(subjects.presence(ME)) == []


async def test_what_is_answered_can_be_answered_so_that_both_know_each_other() -> None:
    _, bus = await keeper()
    await bus.deliver(subjects.HELLO, b"other", reply="_INBOX.other")
    assert [(to, reply) for to, _, reply in bus.sent] == [("_INBOX.other", INBOX)]


async def test_a_hello_without_a_reply_subject_is_answered_to_all() -> None:
    kept, bus = await keeper()
    await bus.deliver(subjects.HELLO, b"")
    running = asyncio.create_task(kept.run())
    await until(lambda: bus.to(subjects.presence(ME)))
    running.cancel()


async def test_changes_that_come_without_end_go_out_a_few_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "left_s", lambda: 60.0)
    kept, bus = await keeper()
    running, begun = asyncio.create_task(kept.run()), time.monotonic()
    while time.monotonic() - begun < 0.7:
        kept.touch()
        await asyncio.sleep(0.005)
    took_s = time.monotonic() - begun
    running.cancel()
    assert 1 <= len(bus.to(subjects.presence(ME))) <= took_s / heartbeat.SPACING + 1


def test_a_node_is_waited_for_as_long_as_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    registry, began = Registry(ME), time.monotonic()
    for node, said_s in (("often", 1.0), ("rare", 5.0), ("never", 1e9)):
        registry.receive(presence(NodeId(node), beat_s=said_s))
    gone = []
    for later_s in (2.0, 4.0, 14.0, 17.0, 29.0, 32.0):
        monkeypatch.setattr("outbid_node.registry.time.monotonic", lambda now=began + later_s: now)
        gone.append(registry.sweep())
    assert gone == [[], ["often"], [], ["rare"], [], ["never"]]


async def test_in_a_large_mesh_who_answers_nothing_is_dropped_long_before_its_heartbeats_are_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "GONE_AFTER_S", 0.3)
    bus, registry = ScriptedBus(), Registry(ME)
    names = crowd(registry, 40)
    frozen = watch.next_on_ring(ME, names)
    assert frozen is not None
    bus.awake = set(names) - {frozen}
    why: list[tuple[NodeId, str]] = []
    registry.on_change.append(lambda node, what: why.append((node, what)))
    looking = Watch(me=ME, bus=cast(Bus, bus), registry=registry, on_alone=lambda: None)
    running = asyncio.create_task(looking.run())
    await until(lambda: frozen not in registry)
    running.cancel()
    assert why == [(frozen, "gone")]
    assert bus.to(subjects.SUSPECT) == [frozen.encode()]


async def test_where_one_fell_silent_those_that_are_not_heard_either_are_asked_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "GONE_AFTER_S", 0.3)
    bus, registry = ScriptedBus(), Registry(ME)
    names = crowd(registry, 40)
    cut_off = {name for n, name in enumerate(names) if n % 2 == 0} | {watch.next_on_ring(ME, names)}
    bus.awake = set(names) - cut_off
    looking = Watch(me=ME, bus=cast(Bus, bus), registry=registry, on_alone=lambda: None)
    running = asyncio.create_task(looking.run())
    await until(lambda: not cut_off & {peer.presence.node for peer in registry})
    running.cancel()
    assert {peer.presence.node for peer in registry} == bus.awake


async def test_a_node_that_was_heard_of_while_it_was_asked_in_vain_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "GONE_AFTER_S", 0.3)
    bus, registry = ScriptedBus(), Registry(ME)
    (busy,) = crowd(registry, 1)
    looking = Watch(me=ME, bus=cast(Bus, bus), registry=registry, on_alone=lambda: None)
    await looking.start()
    await bus.deliver(subjects.SUSPECT, busy.encode())
    begun, seq = time.monotonic(), 1
    while time.monotonic() - begun < 1.5:
        seq += 1
        registry.receive(msgspec.structs.replace(presence(busy), seq=seq))
        await asyncio.sleep(0.02)
    assert busy in registry
    assert len(bus.asked) > 2
