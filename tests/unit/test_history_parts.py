"""The pure parts of the history: what is kept of texts, how much is written down, sums and means."""

from __future__ import annotations

import msgspec
import pytest

from outbid_contracts.errors import (
    AttemptFailed,
    AttemptsExhausted,
    ErrorBody,
    InvalidRequest,
    NoBid,
    NodeLost,
    OutbidError,
)
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import AttemptRecord, Decline, Job
from outbid_node.auctioned import Auction
from outbid_node.history import recording, words
from outbid_node.history.building import job_rows, six
from outbid_node.history.recording import Allowance, Kind
from outbid_node.history.rollup import means, sums
from outbid_node.history.rows import Attempts, Auctions, Bids, Jobs, Samples, Usage
from outbid_node.history.samples import mean
from outbid_node.owned import OwnedJob

EMPTY = {field.name: None for field in msgspec.structs.fields(Samples)} | {
    "power_source": "",
    "running": 0,
    "waiting": 0,
}


def sample(at_ms: int, span_s: float = 1.0, **values: object) -> Samples:
    return msgspec.convert(EMPTY | {"at_ms": at_ms, "span_s": span_s} | values, Samples)


# -- texts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [AttemptFailed, InvalidRequest, AttemptsExhausted, NoBid], ids=lambda error: error.code
)
def test_a_text_that_may_quote_what_was_asked_is_not_kept(error: type[OutbidError]) -> None:
    assert words.kept(error.code, "cannot do 'my secret'") == ""


def test_a_text_that_a_daemon_made_is_kept_up_to_a_length() -> None:
    assert words.kept(NodeLost.code, "node pi fell silent") == "node pi fell silent"
    assert len(words.kept(NodeLost.code, "x" * 10_000)) == words.LONGEST


def test_a_code_that_nobody_knows_keeps_no_text() -> None:
    assert words.kept("made_up_by_a_peer", "secret") == ""


SECRET = "xyzzy-the-prompt"


def failed_job() -> OwnedJob:
    """Whatever has words of its own says the prompt."""
    me, id = NodeId("node0001"), JobId("job1")
    job = Job(id=id, owner=me, capability="test.echo", params={"text": SECRET}, work={"chunks": 1.0})
    owned = OwnedJob(job, tell=lambda event: None, state="failed", node=me, name="one")
    body = ErrorBody(code=AttemptFailed.code, message=f"cannot do {SECRET}")
    owned.attempts = [AttemptRecord(attempt=1, node=me, started_ms=1, ended_ms=2, error=body, traceback=SECRET)]
    refusal = Decline(node=me, job=id, code=InvalidRequest.code, reason=f"{SECRET} is too long")
    busy = Decline(node=me, job=id, code="busy", reason="all 4 slots are taken", temporary=True)
    owned.auctions = [Auction(JobId("j"), 1, declines=[refusal, busy])]
    owned.error = NoBid(f"no bid: {SECRET} is too long")
    return owned


def test_no_row_of_a_failed_job_has_what_was_asked_or_what_quotes_it() -> None:
    rows = list(job_rows(failed_job(), name_of=str))
    assert SECRET not in str(rows)
    assert [type(row) for row in rows] == [Jobs, Attempts, Auctions, Bids, Bids]
    assert "all 4 slots are taken" in str(rows)


# -- how much ----------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(recording, "time", clock)
    return clock


def test_an_allowance_is_so_many_a_second_whatever_is_asked_for(clock: Clock) -> None:
    allowance = Allowance(20)
    taken = 0
    for _ in range(5_000 * 10):
        taken += allowance.take()
        clock.now += 1 / 5_000
    assert 20 * 10 <= taken <= 20 * 11


def test_an_allowance_that_was_not_used_is_not_saved_up(clock: Clock) -> None:
    allowance = Allowance(20)
    clock.now += 3600
    assert sum(allowance.take() for _ in range(1000)) == 20


def test_what_matters_is_written_down_while_the_rest_is_only_sampled(clock: Clock) -> None:
    kind = Kind()
    taken = {True: 0, False: 0}
    for number in range(10_000):
        matters = number % 100 == 0
        taken[matters] += kind.take(matters)
        clock.now += 1 / 5_000
    assert taken[True] == 100
    assert taken[False] <= recording.SAMPLED_S * 3


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "rounded"), [(1.23456789, 1.23457), (1234567.89, 1234570.0), (1.5e-9, 1.5e-9), (0.0, 0.0), (-2.5, -2.5)]
)
def test_numbers_keep_six_digits(number: float, rounded: float) -> None:
    assert six(number) == rounded


def test_a_mean_counts_each_sample_by_the_time_it_stands_for() -> None:
    found = mean([sample(1000, 1.0, cpu_percent=10.0), sample(4000, 3.0, cpu_percent=50.0)])
    assert (found.at_ms, found.span_s, found.cpu_percent) == (4000, 4.0, 40.0)


def test_a_mean_is_of_what_is_known_and_nothing_if_that_is_nothing() -> None:
    found = mean([sample(1, power_w=None), sample(2, power_w=30.0)])
    assert (found.power_w, found.gpu_w) == (30.0, None)


def test_means_are_of_ten_minutes_of_the_clock_each() -> None:
    found = means([sample(at_s * 1000) for at_s in range(0, 1800, 60)])
    assert [(one.at_ms, one.span_s) for one in found] == [(540_000, 10.0), (1_140_000, 10.0), (1_740_000, 10.0)]


def test_sums_of_one_hour_and_kind_add_up_and_others_stay_apart() -> None:
    one = Usage(
        hour_ms=0,
        submitter="u",
        owner="o",
        capability="c",
        model=None,
        jobs=1,
        failed=0,
        seconds=0.5,
        energy_j=2.0,
        cost_usd=0.25,
        units={"a": 1.0},
    )
    other = msgspec.structs.replace(one, submitter="v")
    more = msgspec.structs.replace(one, failed=1, units={"b": 2.0})
    both = msgspec.structs.replace(
        one, jobs=2, failed=1, seconds=1.0, energy_j=4.0, cost_usd=0.5, units={"a": 1.0, "b": 2.0}
    )
    assert sums([one, other, more]) == [both, other]
