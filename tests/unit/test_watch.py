"""Who watches whom, so that a dead daemon is noticed without everybody asking everybody."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from outbid_contracts.ids import NodeId
from outbid_node.watch import next_on_ring

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
