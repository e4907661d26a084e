"""From offers to promises: the formula that bidders, owners and simulations share."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.messages import Offer
from outbid_node.estimate import MOST_S, estimate

ANY = st.floats(allow_nan=True, allow_infinity=True)
UNITS = st.sampled_from(["tokens", "pixels", "steps"])


def offer(**changes: object) -> Offer:
    plain: dict[str, object] = {
        "capability": "test.echo",
        "model": None,
        "warm": True,
        "slots": 4,
        "free": 4,
        "load_s": 5.0,
        "fixed_s": 1.0,
        "rates": {"tokens": 0.1},
        "watts": 10.0,
        "usd_per_s": 0.001,
        "spread": 2.0,
    }
    return Offer(**(plain | changes))  # type: ignore[arg-type]


def test_a_warm_offer_is_fixed_time_and_work_times_rate() -> None:
    numbers = estimate(offer(), {"tokens": 20})
    assert numbers.finish_s == pytest.approx(3.0)
    assert numbers.finish_p90_s == pytest.approx(6.0)
    assert numbers.energy_j == pytest.approx(30.0)
    assert numbers.cost_usd == pytest.approx(0.003)


def test_a_cold_offer_adds_the_loading() -> None:
    assert estimate(offer(warm=False), {"tokens": 20}).finish_s == pytest.approx(8.0)


def test_jobs_that_share_a_runner_slow_each_other() -> None:
    crowded = estimate(offer(free=2, crowding=0.5), {"tokens": 20}).finish_s
    assert crowded == pytest.approx(3.0 * (1 + 0.5 * 2))


def test_jobs_that_run_side_by_side_share_joules_and_dollars() -> None:
    alone, third = estimate(offer(), {"tokens": 20}), estimate(offer(free=2), {"tokens": 20})
    assert third.energy_j == pytest.approx(alone.energy_j / 3)
    assert third.cost_usd == pytest.approx(alone.cost_usd / 3)


def test_unknown_units_count_as_free() -> None:
    assert estimate(offer(), {"pixels": 1e9}).finish_s == pytest.approx(1.0)


def test_an_upper_bound_counts_as_what_is_usually_needed() -> None:
    typical = {"tokens": (40.0, 300.0)}
    assert estimate(offer(typical=typical), {"tokens": 1000}).finish_s == pytest.approx(1.0 + 40 * 0.1)
    assert estimate(offer(typical=typical), {"tokens": 10}).finish_s == pytest.approx(1.0 + 10 * 0.1)


def test_p90_is_of_long_answers_too() -> None:
    certain = estimate(offer(typical={"tokens": (40.0, 300.0)}, spread=1.0), {"tokens": 1000})
    assert certain.finish_p90_s == pytest.approx(1.0 + 300 * 0.1)
    both = estimate(offer(typical={"tokens": (40.0, 300.0)}, spread=2.0), {"tokens": 1000})
    assert certain.finish_p90_s < both.finish_p90_s < 2 * certain.finish_p90_s


@given(st.dictionaries(UNITS, st.floats(0, 1e9)), st.integers(0, 4))
def test_promises_are_never_negative_and_p90_never_below_p50(work: dict[str, float], free: int) -> None:
    numbers = estimate(offer(free=free, spread=0.5), work)
    assert 0 <= numbers.finish_s <= numbers.finish_p90_s


@given(
    work=st.dictionaries(UNITS, ANY),
    rates=st.dictionaries(UNITS, ANY),
    typical=st.dictionaries(UNITS, st.tuples(ANY, ANY)),
    numbers=st.fixed_dictionaries(
        {name: ANY for name in ("load_s", "fixed_s", "crowding", "spread", "watts", "usd_per_s")}
    ),
    free=st.integers(-(10**6), 10**6),
    warm=st.booleans(),
)
def test_whatever_a_peer_offers_and_asks_its_promise_is_a_number(
    work: dict[str, float],
    rates: dict[str, float],
    typical: dict[str, tuple[float, float]],
    numbers: dict[str, float],
    free: int,
    warm: bool,
) -> None:
    told = estimate(offer(rates=rates, typical=typical, free=free, warm=warm, **numbers), work)
    for number in (told.finish_s, told.finish_p90_s, told.energy_j, told.cost_usd):
        assert math.isfinite(number)
        assert number >= 0
    assert told.finish_s <= told.finish_p90_s <= MOST_S


@given(st.dictionaries(UNITS, st.floats(0, 1e6)), UNITS, st.floats(0, 1e6), st.booleans())
def test_more_work_never_takes_less_time(work: dict[str, float], unit: str, more: float, bounded: bool) -> None:
    rates = {"tokens": 0.1, "pixels": 1e-6}
    typical = {"tokens": (40.0, 300.0)} if bounded else {}
    some = estimate(offer(rates=rates, typical=typical), work)
    grown = estimate(offer(rates=rates, typical=typical), work | {unit: work.get(unit, 0.0) + more})
    assert grown.finish_s >= some.finish_s * (1 - 1e-12)
    assert grown.finish_p90_s >= some.finish_p90_s * (1 - 1e-9)
