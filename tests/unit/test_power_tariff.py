"""Prices by the hour: which rule counts when, and that a job over a change of price pays both."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.errors import InvalidConfig
from outbid_node.config import load
from outbid_node.power.tariff import JOULES_PER_KWH, Tariff, parse

ZONE = "Europe/Berlin"


@pytest.fixture(autouse=True)
def _in_berlin() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = ZONE
    time.tzset()
    yield
    os.environ.pop("TZ") if before is None else os.environ.__setitem__("TZ", before)
    time.tzset()


def at(text: str) -> float:
    """Of November 2026: the 16th is a Monday."""
    return datetime.fromisoformat(f"2026-11-{text}").replace(tzinfo=ZoneInfo(ZONE)).timestamp()


@pytest.mark.parametrize(
    ("when", "price"),
    [
        ("16 12:00", 0.30),
        ("16 22:00", 0.18),
        ("16 21:59", 0.30),
        ("17 05:59", 0.18),
        ("17 06:00", 0.30),
        ("17 17:00", 0.45),
        ("21 17:00", 0.20),
        ("21 23:00", 0.18),
        ("22 12:00", 0.20),
        ("23 00:00", 0.18),
    ],
)
def test_the_first_rule_that_fits_counts_else_the_base_price(when: str, price: float) -> None:
    tariff = Tariff(0.30, ("22:00-06:00 0.18", "weekend 0.20", "Mon-Fri 17:00-20:00 0.45"))
    assert tariff.usd_per_kwh(at(when)) == price


def test_a_span_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    tariff = Tariff(0.30, ("fri 22:00-06:00 0.1",))
    prices = [tariff.usd_per_kwh(at(when)) for when in ("20 23:00", "21 05:00", "21 23:00", "20 05:00")]
    assert prices == [0.1, 0.1, 0.30, 0.30]


def test_a_job_over_a_change_of_price_pays_both() -> None:
    tariff = Tariff(0.30, ("22:00-06:00 0.18",))
    change = at("16 22:00")
    mean = tariff.usd_per_j(change - 30, change + 90) * JOULES_PER_KWH
    assert mean == pytest.approx((30 * 0.30 + 90 * 0.18) / 120)


@given(st.floats(0, 86_400), st.floats(0.01, 4000), st.floats(0.01, 4000))
def test_what_is_paid_does_not_depend_on_where_a_span_is_cut(begin: float, first: float, second: float) -> None:
    tariff = Tariff(0.30, ("22:00-06:00 0.18", "06:00-06:30 0"))
    a, b, c = at("16 00:00") + begin, at("16 00:00") + begin + first, at("16 00:00") + begin + first + second
    apart = tariff.usd_per_j(a, b) * (b - a) + tariff.usd_per_j(b, c) * (c - b)
    assert tariff.usd_per_j(a, c) * (c - a) == pytest.approx(apart, rel=1e-6)


def test_the_night_of_a_clock_change_has_no_hole() -> None:
    tariff = Tariff(0.30, ("02:00-03:00 0.1",))
    night = datetime(2026, 10, 25, 1, 59, tzinfo=ZoneInfo(ZONE)).timestamp()
    cheap_s = sum(60 for minute in range(240) if tariff.usd_per_kwh(night + 60 * minute) == 0.1)
    assert cheap_s == 2 * 3600, "the hour comes twice"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0.18",
        "22:00-06:00",
        "22:00-06:00 -0.18",
        "22:00-06:00 0.18 0.2",
        "22:00-6:00 0.18",
        "25:00-06:00 0.18",
        "22:60-06:00 0.18",
        "22:00-22:00 0.18",
        "someday 0.18",
        "mon- 0.18",
        "mon tue 0.18",
        "weekend nan",
    ],
)
def test_a_rule_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="tariff"):
        parse(text)


def test_a_wrong_tariff_is_a_wrong_configuration() -> None:
    with pytest.raises(InvalidConfig, match=r"\[power\].*tariff.*'soon 0\.2'"):
        load(None, None, {"OUTBID_POWER_TARIFF": "22:00-06:00 0.18, soon 0.2"}, {}, {})
