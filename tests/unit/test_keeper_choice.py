"""When an owner has been away long enough, and which node keeps its copies."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.ids import NodeId
from outbid_node.durable.chosen import rendezvous
from outbid_node.durable.holding import FROZEN_S, Absences

OWNER = NodeId("owner")


def test_owner_is_due_only_after_it_was_away_all_the_time() -> None:
    absences = Absences(10)
    there = {OWNER}
    seen = [bool(absences.look(now, [OWNER], there.__contains__)) for now in (1, 2)]
    there.clear()
    seen += [bool(absences.look(now, [OWNER], there.__contains__)) for now in range(3, 12)]
    assert not any(seen)
    there.add(OWNER)
    absences.look(12, [OWNER], there.__contains__)
    there.clear()
    due = [now for now in range(13, 30) if absences.look(now, [OWNER], there.__contains__)]
    assert due[0] == 23


def test_keeper_that_was_frozen_itself_begins_to_count_anew() -> None:
    absences = Absences(10)
    for now in range(1, 10):
        assert not absences.look(now, [OWNER], lambda owner: False)
    woken = 10 + FROZEN_S + 100
    assert not absences.look(woken, [OWNER], lambda owner: False)
    due = [n for n in range(1, 12) if absences.look(woken + n, [OWNER], lambda owner: False)]
    assert due == [10, 11]


@given(st.sets(st.text("abcdef", min_size=4, max_size=8), min_size=1), st.data())
def test_choice_stays_when_others_come_or_go(names: set[str], data: st.DataObject) -> None:
    nodes = [NodeId(name) for name in names]
    best = rendezvous(OWNER, nodes)
    fewer = data.draw(st.permutations(nodes))[: len(nodes) // 2]
    assert rendezvous(OWNER, [*fewer, best]) == best
