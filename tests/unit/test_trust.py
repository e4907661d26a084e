"""Owners lengthen the times of nodes whose promises ran short: how soon, by how much, and for how long."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.ids import BidId, JobId, NodeId
from outbid_contracts.messages import Bid
from outbid_contracts.policy import Policy
from outbid_node.estimating.trust import HALF_LIFE_S, MOST_STRETCH, REMEMBERED, Trust
from outbid_node.ranking import rank

LIAR, HONEST = NodeId("liar"), NodeId("honest")
CHAT = "llm.chat"


class Owner:
    """An owner with a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.trust = Trust(lambda: self.now)

    def note(self, ratio: float, times: int = 1, node: NodeId = LIAR, *, done: bool = True) -> None:
        for _ in range(times):
            self.now += 1.0
            self.trust.note(node, CHAT, 1.0, ratio, done=done)

    def stretch(self, node: NodeId = LIAR) -> float:
        return self.trust.stretch(node, CHAT)

    def winner(self, promised: dict[NodeId, float]) -> NodeId:
        bids = [bid(node, seconds) for node, seconds in promised.items()]
        return rank(bids, Policy(goal="fastest"), stretch=lambda b: self.trust.of_bid(CHAT, b))[0].bid.node


def bid(node: NodeId, finish_s: float) -> Bid:
    return Bid(
        bid_id=BidId("b"),
        node=node,
        job=JobId("j"),
        expires_ms=0,
        start_s=0.0,
        finish_s=finish_s,
        finish_p90_s=finish_s,
        energy_j=0.0,
        cost_usd=0.0,
        warm=True,
        zone="lan",
    )


def test_a_stranger_and_a_node_that_keeps_its_promises_are_believed() -> None:
    owner = Owner()
    assert owner.stretch() == 1.0
    chance = random.Random(3)
    for _ in range(50):
        owner.note(chance.lognormvariate(0, 0.25))
    assert owner.stretch() < 1.05


def test_one_overrun_is_forgiven_and_the_second_is_not() -> None:
    owner = Owner()
    owner.note(100.0)
    assert owner.stretch() == 1.0
    owner.note(100.0)
    assert 70 < owner.stretch() <= 100


@pytest.mark.parametrize("promise_s", [0.0, 1e-9, 0.001, 0.01])
def test_a_node_that_promises_next_to_nothing_wins_twice(promise_s: float) -> None:
    owner = Owner()
    wins = 0
    for _ in range(50):
        owner.now += 1.0
        if owner.winner({LIAR: promise_s, HONEST: 0.3}) == LIAR:
            wins += 1
            owner.trust.note(LIAR, CHAT, promise_s, 0.5)
    assert wins == 2


def test_a_small_bias_is_believed_after_some_runs() -> None:
    owner = Owner()
    owner.note(2.0, times=2)
    assert owner.stretch() < 1.4
    owner.note(2.0, times=10)
    assert 1.5 < owner.stretch() <= 2.0


def test_a_pessimist_is_taken_at_its_word() -> None:
    owner = Owner()
    owner.note(0.1, times=20)
    assert owner.stretch() == 1.0


def test_a_node_that_was_repaired_is_believed_again_by_good_runs() -> None:
    owner = Owner()
    owner.note(50.0, times=20)
    assert owner.stretch() > 40
    owner.note(1.0, times=6)
    assert owner.stretch() < 1.1


def test_a_node_nobody_asks_any_more_gets_another_chance_with_time() -> None:
    owner = Owner()
    owner.note(1000.0, times=REMEMBERED)
    owner.now += HALF_LIFE_S
    assert owner.stretch() > 100
    owner.now += 3 * HALF_LIFE_S
    assert owner.stretch() == 1.0


def test_an_attempt_that_was_not_done_counts_only_if_it_ran_over() -> None:
    owner = Owner()
    owner.note(0.5, times=5, done=False)
    assert owner.stretch() == 1.0
    owner.note(30.0, times=5, done=False)
    assert owner.stretch() > 25


def test_each_kind_of_work_and_each_node_is_judged_by_itself() -> None:
    owner = Owner()
    owner.note(100.0, times=5)
    assert owner.trust.stretch(LIAR, "image.generate") == 1.0
    assert owner.stretch(HONEST) == 1.0


def test_jobs_of_milliseconds_tell_nothing() -> None:
    owner = Owner()
    for _ in range(20):
        owner.trust.note(LIAR, CHAT, 0.0003, 0.012)
    assert owner.stretch() == 1.0


@given(st.lists(st.tuples(st.floats(), st.floats(), st.booleans(), st.floats(0, 1e9)), max_size=40))
def test_no_history_makes_a_stretch_absurd(history: list[tuple[float, float, bool, float]]) -> None:
    trust = Trust(lambda: 1e6)
    for promised_s, took_s, done, ago_s in history:
        trust.note(LIAR, CHAT, promised_s, took_s, done=done, ago_s=ago_s)
    assert 1.0 <= trust.stretch(LIAR, CHAT) <= MOST_STRETCH
    assert math.isfinite(trust.stretch(LIAR, CHAT))
