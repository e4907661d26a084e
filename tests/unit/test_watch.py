"""Who watches whom, so that a dead daemon is noticed without everybody asking everybody."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from outbid_contracts.ids import NodeId
from outbid_contracts.messages import LeaseState
from outbid_node.registry import BEAT_S, Registry
from outbid_node.watch import RING_S, Watch, next_on_ring
from tests.unit.test_registry import ME, OTHER, presence

nodes = st.sets(st.from_regex(r"[a-z0-9]{4,8}", fullmatch=True).map(NodeId), min_size=2, max_size=30)


@given(nodes)
def test_each_node_is_watched_by_exactly_one_other(ring: set[NodeId]) -> None:
    watched = [next_on_ring(node, ring) for node in ring]
    assert sorted(filter(None, watched)) == sorted(ring)
    assert all(watcher != node for watcher, node in zip(ring, watched, strict=True))


@given(nodes, st.data())
def test_when_one_goes_its_watcher_takes_over_the_next(ring: set[NodeId], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(sorted(ring)))
    watcher = next(node for node in ring if next_on_ring(node, ring) == gone)
    rest = ring - {gone}
    taken = next_on_ring(gone, rest)
    assert next_on_ring(watcher, rest) == (taken if len(rest) > 1 else None)


def test_a_lone_node_watches_nobody() -> None:
    assert next_on_ring(NodeId("meme"), [NodeId("meme")]) is None
    assert next_on_ring(NodeId("meme"), []) is None


class Asked:
    """Stands in for the bus: the neighbour answers each question, and when it was asked is kept."""

    connected = True

    def __init__(self) -> None:
        self.times: list[float] = []
        self.first = asyncio.Event()

    async def call(self, *question: object, **settings: object) -> LeaseState:
        self.times.append(time.monotonic())
        self.first.set()
        return LeaseState(node=OTHER)


async def test_a_neighbour_is_asked_only_when_its_heartbeats_stay_away() -> None:
    bus, registry = Asked(), Registry(ME)
    anything: Any = bus
    watch = Watch(me=ME, bus=anything, registry=registry, on_alone=lambda: None)
    registry.receive(presence(seq=0))
    running = asyncio.create_task(watch.run())
    for seq in range(1, 9):
        await asyncio.sleep(BEAT_S / 4)
        registry.receive(presence(seq=seq))
    heard = time.monotonic()
    assert not bus.times
    async with asyncio.timeout(10 * RING_S):
        await bus.first.wait()
    running.cancel()
    assert bus.times[0] - heard >= RING_S
