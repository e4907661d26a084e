"""`outbid why` and `outbid what-if` without a mesh: the arithmetic adds up, at every width, for people and programs."""

from __future__ import annotations

import doctest
import io
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from outbid.cli import explaining, job_listing, output, sheets, what_if
from outbid.cli.main import cli
from outbid_contracts.errors import AttemptFailed, NoBid
from outbid_contracts.ids import BidId, JobId, NodeId
from outbid_contracts.messages import AttemptRecord, Bid, BidSheet, Decline, JobRecord
from outbid_contracts.policy import GOALS, Policy, Weights, Zone
from outbid_contracts.requests import JobsReply
from outbid_contracts.what_if import Case, WhatIfReply
from outbid_node.ranking import explain, rank

JOB = JobId("01k3m2v7x0")
HOUR_MS = 3_600_000


def bid(node: str, finish_s: float, energy_j: float = 0, cost_usd: float = 0, zone: Zone = "lan") -> Bid:
    return Bid(
        bid_id=BidId(node),
        node=NodeId(node),
        job=JOB,
        expires_ms=0,
        start_s=0.0,
        finish_s=finish_s,
        finish_p90_s=1.5 * finish_s,
        energy_j=energy_j,
        cost_usd=cost_usd,
        warm=True,
        zone=zone,
        why="warm; 30 new_tokens/s; 1 of 4 slots free; from 31 jobs",
    )


BIDS = (
    bid("laptop", 8.0, 200, 0.000017),
    bid("gaming-pc", 1.5, 450, 0.000038),
    bid("rented", 0.8, 560, 0.00044, "cloud"),
)


def sheet(policy: Policy, attempt: int = 1, *, opened_ms: int = HOUR_MS, boaster: str = "", **more: Any) -> BidSheet:
    ranked = rank(BIDS, policy, stretch=lambda one: 1.6 if one.node == boaster else 1.0)
    return BidSheet(
        attempt=attempt,
        how="asked",
        opened_ms=opened_ms,
        took_ms=2.5,
        asked=4,
        bids=tuple(ranked),
        declines=(Decline(node=NodeId("nas"), job=JOB, code="busy", reason="all 2 slots are taken", temporary=True),),
        winner=ranked[0].bid.node,
        why=explain(ranked, policy),
        **more,
    )


def record(policy: Policy, *sheets: BidSheet, attempts: tuple[AttemptRecord, ...] = (), **more: Any) -> JobRecord:
    return JobRecord(
        id=JOB,
        owner=NodeId("laptop"),
        capability="llm.chat",
        model="smollm2",
        policy=policy,
        state="done",
        created_ms=HOUR_MS,
        ended_ms=HOUR_MS + 10_000,
        sheets=sheets,
        attempts=attempts,
        **more,
    )


def attempt(number: int, node: str, **more: Any) -> AttemptRecord:
    return AttemptRecord(attempt=number, node=NodeId(node), started_ms=HOUR_MS, ended_ms=HOUR_MS + 8500, **more)


Shown = Callable[..., str]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What a terminal of that width shows."""

    def at(width: int, work: Callable[[], None]) -> str:
        page = io.StringIO()
        console = Console(file=page, width=width, highlight=False)
        for module in (explaining, what_if):
            monkeypatch.setattr(module, "show", lambda *parts: console.print(*parts, sep="\n"))
        work()
        return page.getvalue()

    return at


# -- why ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120])
def test_why_fits_the_terminal_and_says_every_number(shown: Shown, width: int) -> None:
    policy = Policy(goal="green", deadline_s=30)
    spent = attempt(1, "laptop", promised_s=8.0, promised_p90_s=12.0, took_s=9.6, energy_j=100.0, cost_usd=0.000017)
    job = record(policy, sheet(policy, waited_s=3.0, waited_for="all slots were taken"), attempts=(spent,))
    text = shown(width, lambda: explaining.why(job, [], verbose=False, as_json=False))

    assert max(map(cell_len, text.splitlines())) <= width
    flat = " ".join(text.split())
    assert "goal green deadline 30 s" in flat
    assert "waited 3.00 s: all slots were taken" in flat
    assert "time 0.7 × 8.00 s + 0.3 × 12.00 s = 9.2; energy 0.5 × 200 J = 100; score 109" in flat
    assert "nas declined (busy): all 2 slots are taken" in flat
    assert "time 8.00 s 9.60 s 20 % longer" in flat
    assert "p90 12.00 s" in flat
    assert "energy 200 J 100 J 50 % less" in flat
    assert "cost $0.000017 $0.000017" in flat


def test_why_says_whose_promises_ran_short_and_what_is_late_or_excluded(shown: Shown) -> None:
    policy = Policy(goal="balanced", deadline_s=5, zone=("lan",))
    job = record(policy, sheet(policy, boaster="laptop"))
    flat = " ".join(shown(300, lambda: explaining.why(job, [], verbose=False, as_json=False)).split())
    assert (
        "laptop ×1.6: its promises ran short; time 0.7 × 12.80 s + 0.3 × 19.20 s = 14.7; energy 0.001 × 320 J" in flat
    )
    assert "late 1,000 × 14.20 s past the deadline = 14,200" in flat
    assert "rented excluded: the policy's zone is lan; this node is in zone cloud" in flat


def test_why_tells_a_wait_that_nobody_gave_a_reason_for_from_the_times(shown: Shown) -> None:
    policy = Policy(goal="fastest")
    lost = attempt(1, "rented", error=AttemptFailed("it went away").body())
    job = record(policy, sheet(policy), sheet(policy, 2, opened_ms=HOUR_MS + 12_500), attempts=(lost,))
    text = shown(100, lambda: explaining.why(job, [], verbose=False, as_json=False))
    assert text.count("waited") == 1
    assert "waited 4.00 s" in text
    assert "attempt 1 on rented failed after 8.50 s: attempt_failed: it went away" in text


def test_each_attempt_stands_below_the_auction_that_led_to_it() -> None:
    """Numbers make leaps where awards were refused, or an owner started again."""
    policy = Policy()
    three = tuple(attempt(number, "laptop") for number in (2, 1_000_001, 1_000_004))
    job = record(policy, sheet(policy, 1), sheet(policy, 1_000_001), sheet(policy, 1_000_003), attempts=three)
    assert [[a.attempt for a in found] for _, found in explaining.rounds(job)] == [[2], [1_000_001], [1_000_004]]
    assert [s and s.attempt for s, _ in explaining.rounds(job)] == [1, 1_000_001, 1_000_003]
    sheetless = record(policy, attempts=three)
    assert [(s, len(found)) for s, found in explaining.rounds(sheetless)] == [(None, 3)]


@given(
    st.sampled_from(GOALS),
    st.floats(0, 1e4),
    st.floats(0, 1e6),
    st.floats(0, 10),
    st.floats(1, 10),
    st.none() | st.floats(0.1, 100),
)
def test_the_arithmetic_names_the_rates_that_made_the_score(
    goal: Any, finish_s: float, energy_j: float, cost_usd: float, by: float, deadline_s: float | None
) -> None:
    weights = Weights(p50=2, per_j=3, per_usd=4) if goal == "custom" else None
    policy = Policy(goal=goal, deadline_s=deadline_s, weights=weights)
    (considered,) = rank([bid("a", finish_s, energy_j, cost_usd)], policy, stretch=lambda one: by)
    told = sheets.arithmetic(considered, policy)
    for part in considered.parts:
        assert f"{part} " in told
        assert told.split(f"{part} ")[1].partition(";")[0].count("×") >= 1, f"{part} has no rate in {told!r}"
    assert told.endswith(f"score {sheets.figure(considered.score)}")
    assert "e-" not in told
    assert "e+" not in told


def test_parts_that_another_version_made_with_other_rates_are_told_without_rates() -> None:
    (considered,) = rank([bid("a", 2, 340)], Policy(goal="green"))
    odd = msgspec.structs.replace(considered, parts={"time": 2.0, "energy": 34.0, "luck": 1.0}, score=37.0)
    assert sheets.arithmetic(odd, Policy(goal="green")) == "time 2; energy 34; luck 1; score 37"


def test_the_json_has_the_record_the_rates_and_the_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    policy = Policy(goal="cheap")
    job = record(policy, sheet(policy), attempts=(attempt(1, "laptop", took_s=8.5, energy_j=190.0),))
    explaining.why(job, [], verbose=False, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["weights"] == {"p50": 0.7, "p90": 0.3, "per_j": 0.0, "per_usd": 360_000.0}
    assert facts["winner"] == facts["bids"][0]["bid"]["node"] == "laptop"
    assert facts["sheets"][0]["arithmetic"][0]["told"].endswith("score 15.3")
    assert facts["attempts"][0]["energy_j"] == 190.0
    assert facts["declines"][0]["reason"] == "all 2 slots are taken"


def test_what_nodes_say_about_themselves_steers_no_terminal(shown: Shown) -> None:
    mean = msgspec.structs.replace(BIDS[0], why="\x1b[2J[red]boo[/red]", model="[bold]x")
    ranked = rank([mean], Policy(), {"laptop": "[blink]me\x07"})
    job = record(Policy(), msgspec.structs.replace(sheet(Policy()), bids=tuple(ranked)))
    text = shown(120, lambda: explaining.why(job, [], verbose=False, as_json=False))
    assert "[red]boo[/red]" in text
    assert "[blink]me?" in text
    assert "\x1b" not in text


# -- what if -----------------------------------------------------------------------------------------------------------


def reply(*cases: Case) -> WhatIfReply:
    base = Case(policy=Policy(goal="balanced"), sheet=sheet(Policy(goal="balanced")))
    return WhatIfReply(capability="llm.chat", work={"new_tokens": 200.0}, base=base, cases=cases)


def case(policy: Policy, **more: Any) -> Case:
    return Case(policy=policy, sheet=sheet(policy), **more)


def test_what_if_says_what_the_change_means() -> None:
    green = case(Policy(goal="green"), without=(NodeId("gaming-pc"),))
    assert what_if.summary(reply(green), green, {"gaming-pc": "gaming-pc"}) == (
        "without gaming-pc, goal green: laptop instead of rented, 10x slower, 64 % fewer joules, 25.9x cheaper"
    )
    same = case(Policy(goal="fastest"))
    assert what_if.summary(reply(same), same, {}) == "goal fastest: rented all the same"
    back = case(Policy(goal="fastest", zone=("cloud",)))
    slow = WhatIfReply(capability="llm.chat", base=green, cases=(back,))
    assert what_if.summary(slow, back, {}) == (
        "goal fastest, zone cloud: rented instead of laptop, 10x quicker, 2.8x more joules, 25.9x dearer"
    )
    nobody = Case(policy=Policy(zone=("wan",)), sheet=BidSheet(attempt=1, how="asked", opened_ms=0, took_ms=0, asked=0))
    nobody = msgspec.structs.replace(nobody, error=NoBid("no bid").body())
    assert what_if.summary(reply(nobody), nobody, {}).endswith("zone wan: nobody could do it")


@pytest.mark.parametrize("width", [100, 160])
def test_a_narrow_list_of_jobs_clips_no_id(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    page = io.StringIO()
    console = Console(file=page, width=width, highlight=False)
    monkeypatch.setattr(job_listing, "show", lambda *parts: console.print(*parts, sep="\n"))
    failed = record(Policy(), error=AttemptFailed("a long story " * 10).body())
    job_listing.jobs(JobsReply(jobs=(failed,)), [], as_json=False)
    assert failed.id in page.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_what_if_fits_the_terminal(shown: Shown, width: int) -> None:
    found = reply(*(case(Policy(goal=goal)) for goal in GOALS))
    text = shown(width, lambda: what_if.tell(found, {}))
    assert max(map(cell_len, text.splitlines())) <= width
    assert text.count("rented") >= 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say what kind of job"),
        (("chat", "hi", "--job", "j"), "say what kind of job"),
        (("--job", "j", "-p", "a=1"), "has its own parameters"),
        (("test.echo", "hi"), "a text alone is for chat and image"),
        (("chat", "hi", "--weights", "p50=1", "--policy", "all"), "not for fastest"),
    ],
)
def test_what_makes_no_question_is_refused_before_any_node_is_asked(words: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(cli, ["what-if", *words, "--state", "/nowhere"])
    assert (done.exit_code, said in done.output) == (2, True), done.output


@pytest.mark.parametrize("module", [sheets, output])
def test_examples_in_docstrings_are_true(module: Any) -> None:
    assert doctest.testmod(module).failed == 0
