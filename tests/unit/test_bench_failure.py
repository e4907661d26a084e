"""What the benchmark `failure` makes of what it saw."""

from __future__ import annotations

from collections import Counter

import pytest

from outbid_bench.deaths import OWNER, OWNER_AWAY, OWNER_BACK, RUNNER, WORKERS, Kill
from outbid_bench.failure import KILLS, QUICK_KILLS, in_turns, until_again
from outbid_bench.watched import PIECES, TEXT, Stream
from outbid_contracts.ids import JobId, NodeId

ALL = list(range(PIECES))


def stream(numbers: list[int], text: str | None = TEXT) -> Stream:
    return Stream(JobId("j"), numbers, [n * 0.5 for n in range(len(numbers))], text)


def test_a_whole_stream_has_nothing_astray() -> None:
    assert stream(ALL).astray == 0


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(ALL[:-1], id="the last is missing"),
        pytest.param(ALL[:5] + ALL[6:], id="one is missing"),
        pytest.param([*ALL[:5], 4, *ALL[5:]], id="one came twice"),
        pytest.param([1, 0, *ALL[2:]], id="two changed places"),
    ],
)
def test_pieces_missing_doubled_or_out_of_order_are_counted(numbers: list[int]) -> None:
    assert stream(numbers).astray > 0


def test_a_stream_is_lost_without_a_result_and_astray_with_a_wrong_one() -> None:
    assert stream(ALL, None).lost
    assert stream(ALL, "other").astray == 1
    assert not stream(ALL).lost


def test_a_pause_before_the_kill_is_not_counted() -> None:
    seen = Stream(JobId("j"), [0, 1, 2, 3], [0.0, 5.0, 5.1, 6.1], TEXT)
    assert seen.pause_s(5.05) == pytest.approx(1.0)
    assert seen.pause_s(4.0) == pytest.approx(5.0)


def event(what: str, mono_s: float, job: str) -> dict[str, object]:
    return {"what": what, "mono": round(mono_s * 1e9), "job": job, "node": "n"}


def test_running_again_is_the_first_start_of_each_job_after_the_kill() -> None:
    history = [
        event("started", 9.0, "a"),
        event("started", 9.0, "b"),
        event("started", 10.25, "a"),
        event("started", 11.0, "a"),
        event("started", 10.1, "of another kill"),
    ]
    kill = Kill(RUNNER, NodeId("n"), "n", 10.0)
    assert until_again(history, kill, ["a", "b"]) == [pytest.approx(0.25)]


def test_an_owner_that_is_back_goes_on_once_it_has_recovered_the_job() -> None:
    history = [event("started", 10.1, "a"), event("recovered", 11.5, "a")]
    kill = Kill(OWNER_BACK, NodeId("n"), OWNER, 10.0)
    assert until_again(history, kill, ["a"]) == [pytest.approx(1.5)]


@pytest.mark.parametrize("kills", [KILLS, QUICK_KILLS])
def test_every_death_comes_as_often_as_planned_and_to_the_right_nodes(kills: dict[str, int]) -> None:
    plan = list(in_turns(kills))
    assert Counter(death for death, _ in plan) == Counter(kills)
    assert {victim for death, victim in plan if death in (OWNER_BACK, OWNER_AWAY)} == {OWNER}
    assert {victim for death, victim in plan if death not in (OWNER_BACK, OWNER_AWAY)} == set(WORKERS)
    assert sum(KILLS.values()) >= 50
