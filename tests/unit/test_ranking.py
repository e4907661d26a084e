"""Laws of ranking: a pure function, so everything is tried on made-up bids."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.ids import BidId, JobId, NodeId
from outbid_contracts.messages import Bid
from outbid_contracts.policy import GOALS, Goal, Policy, Zone
from outbid_node.ranking import explain, rank

positive = st.floats(0, 1e6, allow_nan=False)
bids = st.lists(
    st.builds(
        lambda n, start, finish, late, joules, dollars, warm, zone: bid(
            f"node{n:04}", start, finish, late, joules, dollars, warm, zone
        ),
        st.integers(0, 9999),
        positive,
        positive,
        positive,
        positive,
        positive,
        st.booleans(),
        st.sampled_from(["here", "lan", "wan", "cloud"]),
    ),
    max_size=8,
    unique_by=lambda b: b.node,
)
policies = st.builds(
    lambda goal, deadline, cost: Policy(goal=goal, deadline_s=deadline, max_cost_usd=cost),
    st.sampled_from(GOALS),
    st.none() | st.floats(0.001, 1e6),
    st.none() | positive,
)


def bid(
    node: str,
    start_s: float = 0,
    finish_s: float = 1,
    late_s: float = 0,
    energy_j: float = 0,
    cost_usd: float = 0,
    warm: bool = True,
    zone: Zone = "lan",
) -> Bid:
    return Bid(
        bid_id=BidId(node),
        node=NodeId(node),
        job=JobId("job"),
        expires_ms=0,
        start_s=start_s,
        finish_s=finish_s,
        finish_p90_s=finish_s + late_s,
        energy_j=energy_j,
        cost_usd=cost_usd,
        warm=warm,
        zone=zone,
    )


@given(bids, policies, st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_matter(some: list[Bid], policy: Policy, chance: random.Random) -> None:
    shuffled = some.copy()
    chance.shuffle(shuffled)
    assert rank(some, policy) == rank(shuffled, policy)


@given(bids, policies)
def test_every_bid_is_considered_and_the_excluded_come_last(some: list[Bid], policy: Policy) -> None:
    ranked = rank(some, policy)
    assert {c.bid.node for c in ranked} == {b.node for b in some}
    flags = [bool(c.excluded) for c in ranked]
    assert flags == sorted(flags)
    explain(ranked, policy)


@given(bids, policies, positive)
def test_a_bid_that_is_better_in_everything_never_ranks_behind(some: list[Bid], policy: Policy, gain: float) -> None:
    for old in some:
        better = msgspec.structs.replace(
            old,
            node=NodeId("aaaa"),
            finish_s=old.finish_s / 2,
            finish_p90_s=old.finish_p90_s / 2,
            energy_j=old.energy_j / 2,
            cost_usd=old.cost_usd / 2,
            warm=True,
        )
        order = [c.bid.node for c in rank([*some, better], policy)]
        assert order.index(better.node) < order.index(old.node)


@pytest.mark.parametrize(
    ("goal", "winner"),
    [("fastest", "gpu"), ("balanced", "desk"), ("green", "pi"), ("cheap", "pi"), ("private", "desk")],
)
def test_each_goal_has_its_own_winner(goal: Goal, winner: str) -> None:
    house = [
        bid("gpu", finish_s=1, energy_j=400, cost_usd=0.05, zone="cloud"),
        bid("desk", finish_s=2, energy_j=300, cost_usd=0.00003),
        bid("pi", finish_s=20, energy_j=100, cost_usd=0.00001),
    ]
    assert rank(house, Policy(goal=goal))[0].bid.node == winner


def test_preferred_node_is_first_and_avoided_node_last_by_id_or_name() -> None:
    some = [bid("aaaa", finish_s=1), bid("bbbb", finish_s=5), bid("cccc", finish_s=9)]
    names = {"cccc": "attic", "aaaa": "desk"}
    order = [c.bid.node for c in rank(some, Policy(prefer=("attic",), avoid=("aaaa",)), names)]
    assert order == ["cccc", "bbbb", "aaaa"]


def test_private_keeps_the_job_at_home() -> None:
    ranked = rank([bid("gpu", finish_s=0.1, zone="cloud"), bid("pi", finish_s=60)], Policy(goal="private"))
    assert ranked[0].bid.node == "pi"
    assert "local network" in ranked[1].excluded


def test_cost_limit_excludes_and_deadline_prefers() -> None:
    dear, cheap = bid("dear", finish_s=1, cost_usd=0.2), bid("cheap", finish_s=50)
    assert [c.excluded == "" for c in rank([dear, cheap], Policy(max_cost_usd=0.1))] == [True, False]
    assert rank([dear, cheap], Policy(goal="cheap", deadline_s=100))[0].bid.node == "cheap"
    late = bid("late", finish_s=1, late_s=30)
    steady = bid("steady", finish_s=4)
    assert rank([late, steady], Policy(goal="fastest"))[0].bid.node == "late"
    assert rank([late, steady], Policy(goal="fastest", deadline_s=10))[0].bid.node == "steady"


def test_explanation_names_the_second_best_and_the_difference() -> None:
    ranked = rank([bid("desk", finish_s=2, energy_j=30), bid("pi", finish_s=20, energy_j=10)], Policy(goal="fastest"))
    text = explain(ranked, Policy(goal="fastest"))
    assert text.startswith("desk is best for goal fastest: 2 s against 20 s, 30 J against 10 J")
