"""Who is next: fair among submitters, each one's own order, and nobody starves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.errors import Busy
from outbid_node.config_sections import QuotasSection
from outbid_node.quotas import Quotas
from outbid_node.shares import Line


@dataclass(eq=False)
class Ticket:
    submitter: str
    order: float
    number: int
    seconds: float = 1.0
    tag: float = math.inf


def served(line: Line[Ticket], count: int | None = None) -> list[Ticket]:
    """The next so many, one after the other."""
    found: list[Ticket] = []
    while len(line) and (count is None or len(found) < count):
        found.append(next(iter(line)))
        line.serve(found[-1])
    return found


def flood(line: Line[Ticket], submitter: str, jobs: int, seconds: float = 1.0, first: int = 0) -> list[Ticket]:
    tickets = [Ticket(submitter, n, first + n, seconds) for n in range(jobs)]
    for ticket in tickets:
        line.push(ticket)
    return tickets


def test_a_flood_delays_a_single_job_of_another_by_one_job_at_most() -> None:
    line: Line[Ticket] = Line()
    flood(line, "ann", 1000)
    served(line, 300)
    single = Ticket("bob", 1e9, 5000)
    line.push(single)
    assert single in served(line, 2)


def test_two_floods_have_half_of_the_seconds_each_though_one_has_longer_jobs() -> None:
    line: Line[Ticket] = Line()
    flood(line, "ann", 400, seconds=1.0)
    flood(line, "bob", 400, seconds=4.0, first=1000)
    seconds = {"ann": 0.0, "bob": 0.0}
    for ticket in served(line, 300):
        seconds[ticket.submitter] += ticket.seconds
    assert seconds["ann"] == pytest.approx(seconds["bob"], abs=5.0)


def test_a_weight_of_two_means_two_thirds_beside_one() -> None:
    line: Line[Ticket] = Line({"ann": 2.0})
    flood(line, "ann", 400)
    flood(line, "bob", 400, first=1000)
    assert sum(ticket.submitter == "ann" for ticket in served(line, 300)) == pytest.approx(200, abs=2)


def test_whoever_was_away_has_saved_nothing_up() -> None:
    line: Line[Ticket] = Line()
    flood(line, "ann", 1000)
    served(line, 500)
    flood(line, "bob", 500, first=5000)
    assert sum(ticket.submitter == "bob" for ticket in served(line, 100)) == pytest.approx(50, abs=2)


def test_one_that_comes_back_without_having_run_has_its_turn_again_and_pays_once() -> None:
    line: Line[Ticket] = Line()
    flood(line, "ann", 10)
    flood(line, "bob", 10, first=100)
    (first,) = served(line, 1)
    line.push(first)
    assert next(iter(line)) is first
    assert sum(ticket.submitter == "ann" for ticket in served(line, 10)) == pytest.approx(5, abs=1)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.floats(0.01, 50), st.integers(0, 3)), max_size=60)
)
def test_each_goes_once_in_its_submitters_order_and_the_walk_tells_who_is_next(
    steps: list[tuple[str, int, float, int]],
) -> None:
    """Whatever the order of arrivals, turns and departures."""
    line: Line[Ticket] = Line({"a": 3.0})
    waiting: list[Ticket] = []
    for number, (submitter, order, seconds, kind) in enumerate(steps):
        if kind == 2 and waiting:
            ticket = next(iter(line))
            assert not any(
                (other.order, other.number) < (ticket.order, ticket.number)
                for other in waiting
                if other.submitter == ticket.submitter
            )
            line.serve(ticket)
            waiting.remove(ticket)
        elif kind == 3 and waiting:
            line.discard(waiting.pop(order % len(waiting)))
        else:
            waiting.append(Ticket(submitter, order, number, seconds))
            line.push(waiting[-1])
        assert len(line) == len(waiting)
        assert set(line) == set(waiting)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.floats(0.01, 50)), max_size=40))
def test_the_walk_tells_in_which_order_they_will_go(jobs: list[tuple[str, int, float]]) -> None:
    line: Line[Ticket] = Line({"a": 3.0})
    for number, (submitter, order, seconds) in enumerate(jobs):
        line.push(Ticket(submitter, order, number, seconds))
    told = list(line)
    assert served(line) == told


def test_who_goes_out_of_turn_pays_and_costs_the_others_nothing() -> None:
    line: Line[Ticket] = Line()
    ann = flood(line, "ann", 20)
    flood(line, "bob", 20, first=100)
    for ticket in ann[5:10]:
        line.serve(ticket)
    assert [ticket.submitter for ticket in served(line, 5)] == ["bob"] * 5


def test_the_jobs_of_an_hour_are_counted_by_submitter(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("outbid_node.quotas.time.monotonic", lambda: clock[0])
    quotas = Quotas(QuotasSection(jobs_per_hour=60))
    quotas.admit("ann", 60)
    with pytest.raises(Busy, match="jobs_per_hour"):
        quotas.admit("ann")
    quotas.admit("bob")
    clock[0] += 60
    quotas.admit("ann")
    with pytest.raises(Busy, match="the next in 60 s"):
        quotas.admit("ann")


def test_a_weight_by_name_holds_for_every_key_of_that_name() -> None:
    quotas = Quotas(QuotasSection(weights=("ann 2", "UKEY 0.5")), people={"UA": "ann", "UB": "bob", "UC": "ann"})
    assert {key: quotas.weights.get(key, 1.0) for key in ("UA", "UB", "UC", "UKEY")} == {
        "UA": 2.0,
        "UB": 1.0,
        "UC": 2.0,
        "UKEY": 0.5,
    }


@pytest.mark.parametrize("line", ["ann", "ann two", "ann 0", "ann -1", " 2", "ann nan"])
def test_a_weight_that_is_none_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="weights"):
        QuotasSection(weights=(line,))
