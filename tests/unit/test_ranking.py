"""Laws of ranking: a pure function, so everything is tried on made-up bids."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from outbid_contracts.ids import BidId, JobId, NodeId
from outbid_contracts.messages import Bid
from outbid_contracts.policy import GOALS, Goal, Policy, Weights, Zone, weights_of
from outbid_node.ranking import explain, rank, remaining, score, times, total

positive = st.floats(0, 1e6, allow_nan=False)
zones: st.SearchStrategy[Zone] = st.sampled_from(["here", "lan", "wan", "cloud"])
bids = st.lists(
    st.builds(
        lambda n, start, finish, late, joules, dollars, warm, zone, later: bid(
            f"node{n:04}", start, finish, late, joules, dollars, warm, zone, later
        ),
        st.integers(0, 9999),
        positive,
        positive,
        positive,
        positive,
        positive,
        st.booleans(),
        zones,
        st.booleans(),
    ),
    max_size=8,
    unique_by=lambda b: b.node,
)
weights = st.builds(lambda p50, p90, j, usd: Weights(p50=p50, p90=p90, per_j=j, per_usd=usd), *[st.floats(0, 1e4)] * 4)
policies = st.builds(
    lambda goal, deadline, cost, zone, weights: Policy(
        goal=goal, deadline_s=deadline, max_cost_usd=cost, zone=zone, weights=weights if goal == "custom" else None
    ),
    st.sampled_from([*GOALS, None]),
    st.none() | st.floats(0.001, 1e6),
    st.none() | positive,
    st.lists(zones, max_size=2).map(tuple),
    weights,
)
factors = st.dictionaries(st.integers(0, 9999).map(lambda n: f"node{n:04}"), st.floats(1, 10), max_size=8)


def bid(
    node: str,
    start_s: float = 0,
    finish_s: float = 1,
    late_s: float = 0,
    energy_j: float = 0,
    cost_usd: float = 0,
    warm: bool = True,
    zone: Zone = "lan",
    later: bool = False,
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
        later=later,
    )


def order(some: list[Bid], policy: Policy, stretches: Mapping[str, float] = {}) -> list[str]:
    return [c.bid.node for c in rank(some, policy, stretch=lambda one: stretches.get(one.node, 1.0))]


# -- laws --------------------------------------------------------------------------------------------------------------


@given(bids, policies, factors, st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_matter(
    some: list[Bid], policy: Policy, stretches: dict[str, float], chance: random.Random
) -> None:
    shuffled = some.copy()
    chance.shuffle(shuffled)
    assert order(some, policy, stretches) == order(shuffled, policy, stretches)


@given(bids, policies)
def test_every_bid_is_considered_and_the_excluded_come_last(some: list[Bid], policy: Policy) -> None:
    ranked = rank(some, policy)
    assert {c.bid.node for c in ranked} == {b.node for b in some}
    flags = [bool(c.excluded) for c in ranked]
    assert flags == sorted(flags)
    explain(ranked, policy)


@given(bids, policies, factors)
def test_a_bid_that_is_better_in_everything_never_ranks_behind(
    some: list[Bid], policy: Policy, stretches: dict[str, float]
) -> None:
    for old in some:
        better = msgspec.structs.replace(
            old,
            node=NodeId("aaaa"),
            finish_s=old.finish_s / 2,
            finish_p90_s=old.finish_p90_s / 2,
            energy_j=old.energy_j / 2,
            cost_usd=old.cost_usd / 2,
            warm=True,
            later=False,
        )
        found = order([*some, better], policy, stretches)
        assert found.index(better.node) < found.index(old.node)


@given(bids, policies, st.floats(0.01, 100))
def test_the_unit_of_the_weights_does_not_matter(some: list[Bid], policy: Policy, factor: float) -> None:
    """Twice the weights is twice the score."""
    assume(policy.deadline_s is None)
    known = weights_of(policy)
    scaled = Weights(**{name: getattr(known, name) * factor for name in Weights.__struct_fields__})
    for one in some:
        before = sum(score(one, policy).values())
        after = sum(score(one, Policy(goal="custom", weights=scaled)).values())
        assert math.isclose(after, before * factor, rel_tol=1e-9, abs_tol=1e-12)


@given(bids, policies, st.floats(1, 10))
def test_the_parts_sum_up_to_the_score_and_to_the_bare_total(some: list[Bid], policy: Policy, by: float) -> None:
    for considered in rank(some, policy, stretch=lambda one: by):
        one = considered.bid
        bare = total(weights_of(policy), policy.deadline_s, *times(one, by), by * one.energy_j, one.cost_usd)
        assert considered.score == sum(considered.parts.values())
        assert math.isclose(considered.score, bare, rel_tol=1e-9)


@given(bids, policies, st.floats(0.001, 1e6))
def test_a_bid_that_misses_the_deadline_is_behind_all_that_keep_it_whatever_the_goal_and_the_wishes(
    some: list[Bid], policy: Policy, deadline_s: float
) -> None:
    wished = [one.node for one in some if one.finish_p90_s > deadline_s]
    policy = msgspec.structs.replace(policy, deadline_s=deadline_s, prefer=tuple(wished))
    able = [c for c in rank(some, policy) if not c.excluded]
    late = [c.bid.finish_p90_s > deadline_s for c in able]
    assert late == sorted(late)


@given(bids, policies, st.floats(0.001, 1e6), st.floats(0.001, 1e6))
def test_a_later_deadline_never_makes_a_bid_late(some: list[Bid], policy: Policy, one: float, other: float) -> None:
    def on_time(deadline_s: float) -> set[str]:
        ranked = rank(some, msgspec.structs.replace(policy, deadline_s=deadline_s))
        return {c.bid.node for c in ranked if "late" not in c.parts}

    assert on_time(min(one, other)) <= on_time(max(one, other))


@given(bids, policies)
def test_preferred_nodes_come_first_and_avoided_ones_last_among_equals_in_time(some: list[Bid], policy: Policy) -> None:
    names = sorted(one.node for one in some)
    policy = msgspec.structs.replace(
        policy, deadline_s=None, prefer=tuple(names[::3]), avoid=(*names[1::3], "nobody"), zone=(), max_cost_usd=None
    )
    tiers = [0 if c.bid.node in policy.prefer else 2 if c.bid.node in policy.avoid else 1 for c in rank(some, policy)]
    assume(policy.goal != "private")
    assert tiers == sorted(tiers)


@given(bids, policies, st.floats(1.1, 10))
def test_a_node_whose_promises_run_short_only_falls_behind(some: list[Bid], policy: Policy, by: float) -> None:
    for one in some:
        assert order(some, policy, {one.node: by}).index(one.node) >= order(some, policy).index(one.node)


@given(bids, st.sampled_from([math.nan, math.inf, -1.0, -math.inf]), st.sampled_from(["finish_s", "finish_p90_s"]))
def test_numbers_that_are_no_promise_are_ruled_out_and_leave_the_others_in_order(
    some: list[Bid], number: float, field: str
) -> None:
    mad = [msgspec.structs.replace(bid(f"mad-{name}"), **{name: number}) for name in (field, "energy_j", "cost_usd")]
    ranked = rank([mad[0], *some, *mad[1:]], Policy(goal="balanced"))
    assert [c.bid.node for c in ranked if not c.excluded] == order(some, Policy(goal="balanced"))
    assert {c.bid.node for c in ranked if c.excluded} == {one.node for one in mad}


# -- goals, on what people own -----------------------------------------------------------------------------------------

CHAT = (  # 200 tokens of a small model: p50, p90 minus p50, joules, dollars
    bid("pi", 0, 40, 20, 240, 0.000020),
    bid("laptop", 0, 8, 4, 200, 0.000017),
    bid("gaming", 0, 1.5, 0.5, 450, 0.000038),
    bid("asleep", 45, 46.5, 10, 9000, 0.00075, warm=False),
    bid("rented", 0, 0.8, 0.3, 560, 0.00044, zone="cloud"),
    bid("endpoint", 0, 3, 4, 750, 0.0006, zone="cloud"),
)
PICTURE = (  # a large one; the Pi would take hours
    bid("pi", 0, 9000, 3000, 54_000, 0.0045),
    bid("laptop", 0, 600, 200, 15_000, 0.00125),
    bid("gaming", 0, 10, 3, 3500, 0.0003),
    bid("asleep", 45, 55, 13, 12_000, 0.001, warm=False),
    bid("rented", 0, 4, 1, 2800, 0.0022, zone="cloud"),
    bid("endpoint", 0, 8, 8, 50_000, 0.04, zone="cloud"),
)


@pytest.mark.parametrize(
    ("goal", "chat", "picture"),
    [
        ("fastest", "rented", "rented"),
        ("balanced", "rented", "rented"),
        ("green", "laptop", "rented"),
        ("cheap", "laptop", "gaming"),
        ("private", "gaming", "gaming"),
    ],
)
def test_each_goal_has_its_own_winner(goal: Goal, chat: str, picture: str) -> None:
    assert [order(list(house), Policy(goal=goal))[0] for house in (CHAT, PICTURE)] == [chat, picture]


def test_without_anything_rented_the_gaming_pc_draws_and_sleeps_while_it_is_not_worth_waking() -> None:
    at_home = [one for one in CHAT if one.zone == "lan" and one.node != "gaming"]
    assert order(at_home, Policy(goal="balanced"))[0] == "laptop", "a short chat does not wake a machine"
    at_home = [one for one in PICTURE if one.zone == "lan" and one.node != "gaming"]
    assert {order(at_home, Policy(goal=goal))[0] for goal in ("balanced", "green", "cheap")} == {"asleep"}


def test_green_does_not_wait_ten_hours_for_a_few_joules() -> None:
    now, later = bid("now", finish_s=10, energy_j=1000), bid("later", finish_s=36_000, energy_j=1)
    assert order([now, later], Policy(goal="green"))[0] == "now"
    spender = bid("now", finish_s=10, energy_j=100_000)
    assert order([spender, later], Policy(goal="green"))[0] == "later"


def test_cheap_waits_an_hour_for_two_cents_and_not_for_half_a_cent() -> None:
    slow = bid("slow", finish_s=3600)
    assert order([bid("dear", finish_s=1, cost_usd=0.02), slow], Policy(goal="cheap"))[0] == "slow"
    assert order([bid("dear", finish_s=1, cost_usd=0.005), slow], Policy(goal="cheap"))[0] == "dear"


def test_green_and_cheap_keep_a_deadline_that_only_the_spender_keeps() -> None:
    for goal in ("green", "cheap"):
        assert order(list(PICTURE), Policy(goal=goal, deadline_s=7))[0] == "rented"
        assert order(list(CHAT), Policy(goal=goal, deadline_s=5))[0] in ("gaming", "rented")


def test_fastest_counts_the_surprises_of_a_node() -> None:
    lottery, steady = bid("lottery", finish_s=1, late_s=30), bid("steady", finish_s=4)
    assert order([lottery, steady], Policy(goal="fastest"))[0] == "steady"
    assert order([bid("quick", finish_s=1, late_s=5), steady], Policy(goal="fastest"))[0] == "quick"


def test_custom_goes_by_its_own_weights() -> None:
    picky = Policy(goal="custom", weights=Weights(p50=0.0, per_usd=1.0, per_j=0.001))
    assert order(list(CHAT), picky)[0] == "laptop"
    assert order(list(CHAT), Policy(goal="custom", weights=Weights(p50=1.0)))[0] == "rented"


# -- modifiers ---------------------------------------------------------------------------------------------------------


def test_preferred_node_is_first_and_avoided_node_last_by_id_or_name() -> None:
    some = [bid("aaaa", finish_s=1), bid("bbbb", finish_s=5), bid("cccc", finish_s=9)]
    names = {"cccc": "attic", "aaaa": "desk"}
    found = [c.bid.node for c in rank(some, Policy(prefer=("attic",), avoid=("aaaa",)), names)]
    assert found == ["cccc", "bbbb", "aaaa"]
    found = [c.bid.node for c in rank(some, Policy(prefer=("bbbb",), avoid=("desk",)), names)]
    assert found == ["bbbb", "cccc", "aaaa"]


def test_private_keeps_the_job_at_home() -> None:
    ranked = rank([bid("gpu", finish_s=0.1, zone="cloud"), bid("pi", finish_s=60)], Policy(goal="private"))
    assert ranked[0].bid.node == "pi"
    assert "local network" in ranked[1].excluded


@pytest.mark.parametrize(
    ("zone", "able"),
    [(("here",), {"here"}), (("lan",), {"here", "lan"}), (("cloud", "wan"), {"cloud", "wan"}), ((), None)],
)
def test_a_zone_rules_out_all_others_and_the_lan_has_the_owner_in_it(
    zone: tuple[Zone, ...], able: set[str] | None
) -> None:
    everywhere: tuple[Zone, ...] = ("here", "lan", "wan", "cloud")
    ranked = rank([bid(where, zone=where) for where in everywhere], Policy(zone=zone))
    assert {c.bid.node for c in ranked if not c.excluded} == (able or set(everywhere))


def test_cost_limit_excludes_and_deadline_prefers() -> None:
    dear, cheap = bid("dear", finish_s=1, cost_usd=0.2), bid("cheap", finish_s=50)
    assert [c.excluded == "" for c in rank([dear, cheap], Policy(max_cost_usd=0.1))] == [True, False]
    assert rank([dear, cheap], Policy(goal="cheap", deadline_s=100))[0].bid.node == "cheap"
    late = bid("late", finish_s=1, late_s=12)
    steady = bid("steady", finish_s=4)
    assert rank([late, steady], Policy(goal="fastest"))[0].bid.node == "late"
    assert rank([late, steady], Policy(goal="fastest", deadline_s=10))[0].bid.node == "steady"


def test_of_bids_that_all_miss_the_deadline_the_least_late_is_first_though_it_wastes() -> None:
    some = [bid("thrifty", finish_s=20, energy_j=1), bid("waster", finish_s=10, energy_j=5000)]
    ranked = rank(some, Policy(goal="green", deadline_s=5))
    assert ranked[0].bid.node == "waster"
    assert "no bid keeps the deadline" in explain(ranked, Policy(goal="green", deadline_s=5))


def test_the_deadline_counts_from_acceptance() -> None:
    policy = Policy(deadline_s=10)
    assert remaining(policy, 4).deadline_s == 6
    assert remaining(policy, 11).deadline_s == pytest.approx(0.001)
    assert remaining(Policy(), 4) == Policy()


def test_among_equals_the_one_that_can_begin_now_is_first_then_the_warm_one() -> None:
    some = [bid("aaaa", later=True), bid("bbbb", warm=False), bid("cccc")]
    assert order(some, Policy()) == ["cccc", "bbbb", "aaaa"]
    assert order([bid("bbbb"), bid("aaaa")], Policy()) == ["aaaa", "bbbb"], "all owners see the same order"


def test_a_promise_of_nothing_is_stretched_too() -> None:
    some = [bid("liar", finish_s=0), bid("honest", finish_s=0.004)]
    assert order(some, Policy())[0] == "liar"
    assert order(some, Policy(), {"liar": 5.0})[0] == "honest"


# -- in words ----------------------------------------------------------------------------------------------------------


def test_explanation_names_the_second_best_and_the_difference() -> None:
    ranked = rank([bid("desk", finish_s=2, energy_j=30), bid("pi", finish_s=20, energy_j=10)], Policy(goal="fastest"))
    text = explain(ranked, Policy(goal="fastest"))
    assert text.startswith("desk is best for goal fastest: 2 s against 20 s, 30 J against 10 J")


def test_explanation_tells_times_as_they_were_ranked() -> None:
    some = [bid("boaster", finish_s=2, cost_usd=5.8e-7), bid("pi", finish_s=3, cost_usd=0.0123)]
    ranked = rank(some, Policy(goal="fastest"), stretch=lambda one: 2.0 if one.node == "boaster" else 1.0)
    assert explain(ranked, Policy(goal="fastest")) == (
        "pi is best for goal fastest: 3 s against 4 s, $0.012 against $0.00000058 for boaster"
    )
    assert ranked[1].stretch == 2.0
    assert ranked[1].parts["time"] == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (Policy(deadline_s=10), "desk is first because pi would miss the deadline by 20 s"),
        (Policy(prefer=("pi",)), "pi is preferred by the caller"),
        (Policy(avoid=("desk",)), "pi is first because the caller avoids desk"),
        (Policy(max_cost_usd=0.1), "desk made the only bid that fits"),
        (Policy(zone=("wan",)), "no bid fits the policy"),
    ],
)
def test_explanation_names_the_modifier_that_decided(policy: Policy, said: str) -> None:
    ranked = rank([bid("desk", finish_s=2), bid("pi", finish_s=20, late_s=10, cost_usd=0.2)], policy)
    assert explain(ranked, policy).startswith(said)
