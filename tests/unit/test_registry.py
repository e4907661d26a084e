"""Who is there, and how many free slots an owner may believe in."""

from __future__ import annotations

import time

import pytest

from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Offer, Presence
from outbid_node.registry import GONE_AFTER_S, Registry

ME, OTHER = NodeId("meme"), NodeId("other")


def presence(node: NodeId = OTHER, seq: int = 1, free: int = 2, boot: str = "b1", **changes: object) -> Presence:
    plain: dict[str, object] = {
        "node": node,
        "name": f"name-{node}",
        "version": "1",
        "boot": boot,
        "seq": seq,
        "state": "up",
        "offers": (offer("small", free), offer("big", free, default=False)),
    }
    return Presence(**(plain | changes))  # type: ignore[arg-type]


def offer(model: str, free: int, *, default: bool = True) -> Offer:
    return Offer(
        capability="llm.chat",
        model=model,
        warm=True,
        slots=4,
        free=free,
        load_s=0,
        fixed_s=0,
        rates={},
        default=default,
    )


def free_of(registry: Registry, model: str | None = None) -> list[int]:
    return [standing.free for standing in registry.standing("llm.chat", model)]


def test_no_model_means_each_nodes_default() -> None:
    registry = Registry(ME)
    registry.receive(presence())
    assert [s.offer.model for s in registry.standing("llm.chat", None)] == ["small"]
    assert [s.offer.model for s in registry.standing("llm.chat", "big")] == ["big"]
    assert registry.standing("llm.chat", "none") == []


def test_an_award_takes_a_slot_until_the_node_says_otherwise() -> None:
    registry = Registry(ME)
    registry.receive(presence(free=2))
    registry.take(OTHER, "llm.chat", "small")
    assert (free_of(registry), free_of(registry, "big")) == ([1], [2])
    registry.take(OTHER, "llm.chat", "small")
    registry.take(OTHER, "llm.chat", "small")
    assert free_of(registry) == [0]
    registry.note_free(OTHER, "llm.chat", "small", 1)
    assert free_of(registry) == [1]
    registry.receive(presence(seq=2, free=4))
    assert free_of(registry) == [4]


def test_a_decline_means_full_until_the_next_word() -> None:
    registry = Registry(ME)
    registry.receive(presence(free=2))
    registry.note_full(OTHER, "llm.chat", None)
    assert (free_of(registry), free_of(registry, "big")) == ([0], [2])


def test_an_old_heartbeat_does_not_undo_a_newer_one() -> None:
    registry = Registry(ME)
    registry.receive(presence(seq=5, free=0))
    registry.receive(presence(seq=4, free=3))
    assert free_of(registry) == [0]
    registry.receive(presence(seq=1, free=3, boot="b2"))
    assert free_of(registry) == [3], "a restarted node counts from one again"


def test_changes_are_told_in_words() -> None:
    registry = Registry(ME)
    told: list[str] = []
    registry.on_change.append(lambda node, what: told.append(what))
    registry.receive(presence(seq=1))
    registry.receive(presence(seq=2))
    registry.receive(presence(seq=1, boot="b2"))
    registry.note_free(OTHER, "llm.chat", "small", 4)
    registry.receive(presence(seq=2, boot="b2", state="leaving"))
    registry.drop(OTHER, "again")
    assert told == ["appeared", "beat", "restarted", "room", "gone"]


def test_silent_nodes_are_dropped_but_never_oneself(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(ME)
    registry.receive(presence())
    registry.receive(presence(ME))
    clock = time.monotonic() + GONE_AFTER_S + 1
    monkeypatch.setattr("outbid_node.registry.time.monotonic", lambda: clock)
    assert registry.sweep() == [OTHER]
    assert ME in registry


def test_a_draining_node_offers_nothing() -> None:
    registry = Registry(ME)
    registry.receive(presence(state="draining"))
    assert registry.standing("llm.chat", None) == []
