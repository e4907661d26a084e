"""Laws of waiting for company: what a job adds to a machine, who gathers, when those who gather begin."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Offer
from outbid_contracts.policy import Policy, Weights
from outbid_node.choosing import Plan, Want, plan
from outbid_node.company import Arrivals, added_j, thrifty
from outbid_node.places import Place, Places

NOW = 1000.0
GREEN = Policy(goal="green")
OFTEN_S = 1.0


def offer(*, slots: int = 4, free: int = 4, crowding: float = 0.1, watts: float = 200.0, unit_s: float = 1.0) -> Offer:
    return Offer(
        capability="c",
        model=None,
        default=True,
        warm=True,
        slots=slots,
        free=free,
        load_s=0.0,
        fixed_s=0.0,
        rates={"u": unit_s},
        crowding=crowding,
        spread=1.2,
        watts=watts,
    )


def place(name: str = "gpu", *frees_s: float, unit_s: float = 1.0, watts: float = 200.0, slots: int = 4) -> Place:
    free = slots - len(frees_s)
    one = offer(slots=slots, free=free, unit_s=unit_s, watts=watts)
    return Place(NodeId(name), one, free, tuple(NOW + f for f in sorted(frees_s)), "lan", name)


def often(mean_s: float = OFTEN_S) -> Arrivals:
    """Another such job comes after so long, as far as one can tell."""
    return Arrivals(came_beside=1.0, counted_s=mean_s, since=NOW)


def want(policy: Policy = GREEN, *, left_s: float | None = None, units: float = 1.0) -> Want:
    return Want({"u": units}, policy, (), None if left_s is None else NOW + left_s)


def looked(wants: Sequence[Want], places: Sequence[Place], after_s: float = 0.0, mean_s: float = OFTEN_S) -> Plan:
    return plan(wants, Places(places), NOW + after_s, arrivals=often(mean_s))


def went(made: Plan) -> list[str]:
    return [place.node for _, place in made.go if place is not None]


# -- what it adds ------------------------------------------------------------------------------------------------------


@given(
    running=st.integers(0, 15),
    finish_s=st.floats(0.0, 1e4),
    ends_s=st.lists(st.floats(-5.0, 1e4), max_size=15).map(sorted),
    crowding=st.floats(0.0, 1.0),
)
def test_a_job_adds_something_between_nothing_and_what_it_takes_alone(
    running: int, finish_s: float, ends_s: list[float], crowding: float
) -> None:
    added = added_j(offer(crowding=crowding), running, finish_s, ends_s)
    assert 0.0 <= added <= 200.0 * finish_s + 1e-6


def test_who_joins_adds_little_and_who_outlasts_the_others_adds_what_it_runs_alone() -> None:
    assert added_j(offer(), 0, 10.0, []) == 2000.0
    assert added_j(offer(), 1, 10.0, [10.0]) == pytest.approx(0.1 * 2000.0)
    assert added_j(offer(), 1, 10.0, [4.0]) == pytest.approx(200.0 * 6.0)


# -- who gathers -------------------------------------------------------------------------------------------------------


def test_only_goals_that_give_a_second_for_a_few_joules_are_thrifty() -> None:
    goals = ("fastest", "balanced", "cheap", "private", "green")
    assert [goal for goal in goals if thrifty(Policy(goal=goal))] == ["green"]  # type: ignore[arg-type]
    assert thrifty(Policy(goal="custom", weights=Weights(p50=1.0, per_j=0.1)))


@pytest.mark.parametrize("goal", ["fastest", "balanced", "cheap", "private"])
def test_other_goals_begin_at_once_whoever_waits_for_company(goal: str) -> None:
    hurried = want(Policy(goal=goal))  # type: ignore[arg-type]
    patient = want()
    made = looked([patient, hurried], [place()])
    assert [job for job, _ in made.go] == [hurried, patient], "it is company for who waits"
    assert (hurried.gathers, hurried.share_j) == (None, None)


def test_one_alone_waits_for_company_and_says_what_it_saves() -> None:
    made = looked([want()], [place()])
    assert not made.go
    assert made.waits[0].reason == "waits for company on gpu: alone 200 J, as one of 4 65 J"


def test_without_a_sign_that_others_will_come_in_time_nobody_waits() -> None:
    for nobody in (None, Arrivals(), often(1e6)):
        assert len(plan([want()], Places([place()]), NOW, arrivals=nobody).go) == 1


def test_a_full_batch_goes_at_once() -> None:
    wants = [want() for _ in range(4)]
    made = looked(wants, [place()])
    assert [job for job, _ in made.go] == wants
    shares = [job.share_j[1] for job in wants if job.share_j is not None]
    assert shares == pytest.approx([200.0 * 1.3 / 4] * 4), "each is ranked by its share of what they add"


def test_who_finds_others_at_work_joins_them() -> None:
    assert went(looked([want()], [place("gpu", 20.0)])) == ["gpu"]
    assert went(looked([want()], [place("gpu", 20.0), place("idle")])) == ["gpu"]


def test_one_slot_is_no_company() -> None:
    assert went(looked([want()], [place(slots=1)])) == ["gpu"]


@given(waited_s=st.floats(0.0, 1e3), units=st.floats(0.1, 50.0), mean_s=st.floats(0.01, 100.0))
def test_nobody_waits_longer_than_its_joules_are_worth(waited_s: float, units: float, mean_s: float) -> None:
    """Two joules a second: alone 200 J a unit, in a full batch 65."""
    job = want(units=units)
    looked([job], [place()], 0.0, mean_s)
    went_at_once = job.gathers is None
    made = looked([job], [place()], waited_s, mean_s)
    patience_s = 0.5 * 135.0 * units
    if waited_s > patience_s * 1.001 or went_at_once:
        assert made.go
    elif waited_s < patience_s * 0.999:
        assert not made.go


@given(left_s=st.floats(0.1, 100.0), units=st.floats(0.1, 20.0))
def test_nobody_who_waits_for_company_endangers_its_deadline(left_s: float, units: float) -> None:
    made = looked([want(left_s=left_s, units=units)], [place()])
    full_p90_s = 1.2 * 1.3 * units
    if made.waits:
        assert left_s > 3.99 * full_p90_s


def test_together_they_wait_for_what_they_waste_together() -> None:
    """Three of four slots waste 200 x 1.2 - 3 x 65 = 45 J: 7.5 s for each of three at two joules a second."""
    wants = [want() for _ in range(3)]
    assert not looked(wants, [place()]).go
    assert not looked(wants, [place()], 7.4).go
    assert len(looked(wants, [place()], 7.6).go) == 3


def test_a_short_job_does_not_wait_out_a_long_ones_patience() -> None:
    """Alone 40 J, in a full batch 13: 13.5 s at two joules a second. The long one may wait for 675 s."""
    short, long = want(units=0.2), want(units=10.0)
    assert not looked([short, long], [place()]).go
    assert not looked([short, long], [place()], 13.4).go
    assert [job for job, _ in looked([short, long], [place()], 13.6).go] == [short]


def test_whoever_must_go_takes_the_others_with_him() -> None:
    patient, urgent = want(), want(left_s=2.0)
    made = looked([patient, urgent], [place()])
    assert [job for job, _ in made.go] == [urgent, patient]


# -- arrivals ----------------------------------------------------------------------------------------------------------


def test_who_sends_one_job_after_the_other_is_no_company_to_himself() -> None:
    arrivals = Arrivals()
    for at_s in range(0, 100, 10):
        arrivals.came(float(at_s))
        arrivals.went(at_s + 1.0, 2.0)
    assert arrivals.mean_s(100.0) == math.inf


@given(gap_s=st.floats(0.1, 50.0), lasts_s=st.floats(0.0, 10.0))
def test_jobs_that_come_evenly_are_expected_so(gap_s: float, lasts_s: float) -> None:
    arrivals = Arrivals()
    for number in range(30):
        arrivals.came(number * gap_s)
        if number:
            arrivals.went(number * gap_s, lasts_s)
    assert arrivals.mean_s(30 * gap_s) == pytest.approx(gap_s, rel=0.5)


def test_waiting_in_vain_teaches_that_nobody_comes() -> None:
    arrivals = Arrivals()
    for number in range(20):
        arrivals.came(0.1 * number)
    for _ in range(20):
        arrivals.went(2.0, 0.0)
    assert arrivals.mean_s(2.0) < 0.2
    for number in range(4):
        arrivals.came(1000.0 * (number + 1))
        arrivals.went(1000.0 * (number + 1) + 45.0, 0.0)
    assert arrivals.mean_s(5000.0) > 45.0
