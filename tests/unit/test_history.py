"""The history checker finds what is wrong in a history, and lets odd but lawful ones pass."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from outbid.chaos.history import check
from outbid.chaos.record import Event, Seen, Violation, load
from outbid.chaos.recovery import percentile, recoveries
from outbid_contracts.digest import digest
from outbid_node.trace import Trace

SEEN = Seen(owner="a", state="done", digest="d1")


class History:
    """Builds a history: each line one millisecond after the one before, unless `wait` lets time pass."""

    def __init__(self, *nodes: str) -> None:
        self.events: list[Event] = []
        self.boots: dict[str, str] = {}
        self._now = 0.0
        for node in nodes or ("a", "b", "c"):
            self.up(node)
        self.wait(10)

    def wait(self, seconds: float) -> History:
        self._now += seconds
        return self

    def driver(self, what: str, **fields: Any) -> History:
        self.wait(0.001).events.append({"mono": int(self._now * 1e9), "what": what, **fields})
        return self

    def note(self, node: str, what: str, **fields: Any) -> History:
        return self.driver(what, node=node, boot=self.boots[node], **fields)

    def up(self, node: str) -> History:
        self.boots[node] = f"{node}{len(self.events)}"
        return self.note(node, "up", name=node)

    def killed(self, node: str, process: str = "daemon") -> History:
        return self.driver("killed", node=node, process=process)

    def accepted(self, node: str = "a", job: str = "j", **fields: Any) -> History:
        return self.note(node, "accepted", job=job, heirs=0, capability="test.echo", model=None, **fields)

    def awarded(self, attempt: int = 1, to: str = "b", by: str = "a", job: str = "j", chunks: int = 0) -> History:
        return self.note(by, "awarded", job=job, attempt=attempt, to=to, chunks=chunks)

    def started(self, attempt: int = 1, on: str = "b", by: str = "a", job: str = "j", **slots: int) -> History:
        about = {"capability": "test.echo", "model": None, "running": 1, "slots": 1} | slots
        return self.note(on, "started", job=job, attempt=attempt, owner=by, **about)

    def stopped(self, attempt: int = 1, on: str = "b", outcome: str = "done", job: str = "j") -> History:
        return self.note(on, "stopped", job=job, attempt=attempt, outcome=outcome)

    def settled(self, attempt: int = 1, on: str = "b", by: str = "a", **fields: Any) -> History:
        about = {"job": "j", "accepted": True, "outcome": "done", "digest": "d1"} | fields
        return self.note(by, "settled", attempt=attempt, by=on, **about)

    def ended(self, attempt: int = 1, by: str = "a", **fields: Any) -> History:
        return self.note(by, "ended", attempt=attempt, **({"job": "j", "state": "done", "digest": "d1"} | fields))

    def ran(self, attempt: int = 1, on: str = "b", by: str = "a", job: str = "j") -> History:
        """Awarded, run and settled; the record of the end is not there yet."""
        self.awarded(attempt, on, by, job).started(attempt, on, by, job).stopped(attempt, on, job=job)
        return self.settled(attempt, on, by, job=job)

    def verdict(self, seen: Seen | None = SEEN) -> list[Violation]:
        return check(self.events, {} if seen is None else {"j": seen})


def only(found: list[Violation]) -> Violation:
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


# -- lawful ----------------------------------------------------------------------------------------------------------


def test_plain_run_is_lawful() -> None:
    assert History().accepted().ran().ended().verdict() == []


def test_second_award_after_a_failure_is_lawful() -> None:
    history = History().accepted().awarded().started().stopped(outcome="failed").settled(outcome="failed", digest="")
    assert history.ran(2, on="c").ended(2).verdict() == []


def test_refused_stale_settlement_is_lawful() -> None:
    history = History().accepted().awarded().started().awarded(2, to="c").started(2, on="c")
    history.stopped().settled(accepted=False).stopped(2, on="c").settled(2, on="c").ended(2)
    assert history.verdict() == []
    late = History().accepted().awarded().started().ran(2, on="c").ended(2).stopped().settled(accepted=False)
    assert late.verdict() == []


def test_same_settlement_accepted_again_is_lawful() -> None:
    history = History().accepted().ran().settled().ended().settled()
    assert history.verdict() == []


def test_restarted_owner_may_run_the_job_again() -> None:
    history = History().accepted().awarded().started().killed("a").up("a").note("a", "recovered", job="j", number=1)
    history.awarded(1001, to="c").started(1001, on="c").stopped(1001, on="c").settled(1001, on="c").ended(1001)
    assert history.verdict() == []


def test_restarted_owner_may_take_what_it_had_awarded_before() -> None:
    history = History().accepted().awarded().started().killed("a").up("a").note("a", "recovered", job="j", number=1)
    assert history.stopped().settled().ended().verdict() == []


def test_result_that_was_settled_but_not_yet_on_disk_may_be_made_again() -> None:
    history = History().accepted().ran().killed("a").up("a").note("a", "recovered", job="j", number=1)
    history.awarded(1001).started(1001).stopped(1001).settled(1001, digest="d2").ended(1001, digest="d2")
    assert history.verdict(Seen(owner="a", state="done", digest="d2")) == []


def test_end_whose_note_was_cut_off_by_a_kill_is_lawful_if_clients_can_read_it() -> None:
    history = History().accepted().ran().killed("a").up("a")
    assert history.verdict() == []
    assert History().accepted().ran().verdict() != [], "its owner lived on and should have noted the end"


def test_a_joined_result_whose_note_was_cut_off_is_lawful_too() -> None:
    history = History().accepted().awarded().started().killed("b").awarded(2, to="c", chunks=3).started(2, on="c")
    history.stopped(2, on="c").settled(2, on="c", digest="rest").killed("a").up("a")
    assert history.verdict(Seen(owner="a", state="done", digest="whole")) == []
    other = History().accepted().ran().killed("a").up("a")
    assert other.verdict(Seen(owner="a", state="done", digest="whole")) != [], "nothing was joined"


def test_result_joined_from_pieces_is_another_than_was_settled() -> None:
    history = History().accepted().awarded().started().killed("b").awarded(2, to="c", chunks=3).started(2, on="c")
    history.stopped(2, on="c").settled(2, on="c", digest="rest").ended(2).settled(2, on="c", digest="rest")
    assert history.verdict() == []


def test_note_of_the_acceptance_may_be_cut_off_by_a_kill() -> None:
    history = History().killed("a").up("a").note("a", "recovered", job="j", number=0)
    assert history.ran(1001).ended(1001).verdict() == []


def test_interactive_job_is_none_of_the_checkers_business() -> None:
    history = History().started(job="chat").stopped(job="chat").settled(job="chat")
    assert history.verdict(None) == []


def test_adopted_job_ends_at_its_new_owner() -> None:
    history = History().accepted().awarded().started().killed("a")
    history.note("c", "adopted", job="j", from_owner="a", number=1001)
    history.ran(1001, by="c", on="c").ended(1001, by="c")
    history.up("a").note("a", "recovered", job="j", number=1).note("a", "moved", job="j", to="c")
    assert history.verdict() == []


@pytest.mark.parametrize("recorded", [False, True])
def test_inherited_end_is_the_one_that_its_owner_decided(recorded: bool) -> None:
    history = History().accepted().ran()
    if recorded:
        history.ended()
    end = {"job": "j", "state": "done", "attempt": 1, "digest": "d1"}
    history.killed("a").note("c", "inherited", **end).up("a").note("a", "moved", job="j", to="c")
    assert history.verdict() == []


def test_inherited_end_may_not_be_another_than_is_recorded() -> None:
    end = {"job": "j", "state": "failed", "attempt": 1, "digest": ""}
    history = History().accepted().ran().ended().killed("a").note("c", "inherited", **end)
    assert only(history.verdict()).what == "another end was inherited than is recorded"


def test_owner_that_writes_no_trace_is_taken_at_its_clients_word() -> None:
    assert History().verdict(Seen(owner="z", state="done", digest="d1")) == []


# -- invariant 1 -----------------------------------------------------------------------------------------------------


def test_acknowledged_job_that_no_owner_knows_is_lost() -> None:
    found = History().verdict(Seen(owner="a"))
    assert {violation.invariant for violation in found} == {1}
    assert "no owner has a record" in found[0].what


def test_job_that_never_ends_is_lost() -> None:
    found = History().accepted().awarded().started().killed("a").up("a").verdict(Seen(owner="a"))
    assert [violation.what for violation in found] == ["it never ended", "no node can tell how it ended"]


def test_unacknowledged_job_on_disk_has_to_end_too() -> None:
    assert only(History().accepted().awarded().started().verdict(None)).invariant == 1


def test_job_may_not_end_twice() -> None:
    found = History().accepted().ran().ended().ended().verdict()
    assert only(found).what == "it ended 2 times"


def test_job_may_not_end_at_two_owners() -> None:
    history = History().accepted().awarded().started().killed("a")
    history.note("c", "adopted", job="j", from_owner="a", number=1001).ran(1001, by="c", on="c").ended(1001, by="c")
    history.up("a").note("a", "recovered", job="j", number=1).stopped().settled().ended()
    whats = [violation.what for violation in history.verdict()]
    assert "2 nodes own it: a, c" in whats
    assert "it ended 2 times" in whats


# -- invariant 2 -----------------------------------------------------------------------------------------------------


def test_stale_attempt_may_not_settle() -> None:
    history = History().accepted().awarded().started().awarded(2, to="c").started(2, on="c").stopped().settled()
    violation = only(history.ended().verdict())
    assert violation.invariant == 2
    assert violation.what == "attempt 1 settled, the newest is 2"
    assert [event["what"] for event in violation.events] == ["awarded", "awarded", "settled"]


def test_second_result_may_not_be_accepted() -> None:
    history = History().accepted().ran().ran(2, on="c").ended()
    assert "two results were accepted" in [violation.what for violation in history.verdict()]


def test_result_may_not_be_replaced_after_the_end() -> None:
    history = History().accepted().ran().ended().settled(digest="d2")
    assert "settled after its end" in [violation.what for violation in history.verdict()]


def test_ended_job_may_not_be_awarded_or_taken_on_again() -> None:
    history = History().accepted().ran().ended().awarded(2)
    assert only(history.verdict()).what == "awarded after its end"
    history = History().accepted().ran().ended().killed("a").up("a").note("a", "recovered", job="j", number=1)
    assert only(history.verdict()).what == "taken on again after its end"


def test_attempt_number_may_not_be_used_twice() -> None:
    history = History().accepted().awarded().started().killed("a").up("a").note("a", "recovered", job="j", number=0)
    history.awarded(1, to="c").started(1, on="c").stopped(1, on="c").settled(1, on="c").ended(1)
    assert only(history.verdict()).what == "attempt 1 was awarded after attempt 1"


def test_recorded_result_is_the_settled_one() -> None:
    found = History().accepted().ran().ended(digest="d2").verdict(None)
    assert only(found).what == "its result is not one that was settled"


def test_clients_read_the_recorded_result() -> None:
    found = History().accepted().ran().ended().verdict(Seen(owner="a", state="done", digest="d2"))
    assert only(found).invariant == 2
    found = History().accepted().ran().ended().verdict(Seen(owner="a", state="done", digest="d1", wrong="'x', not 'y'"))
    assert only(found).what == "clients read 'x', not 'y'"


# -- invariant 3 -----------------------------------------------------------------------------------------------------


def proven(*nodes: str) -> History:
    """A history where each of these nodes has run a job, so its slot is known."""
    history = History()
    for number, node in enumerate(nodes):
        job = f"before{number}"
        history.accepted(job=job).ran(job=job, on=node).ended(job=job)
    return history


def test_job_may_not_wait_beside_a_free_slot() -> None:
    violation = only(proven("b").accepted().wait(3).ran().ended().verdict())
    assert (violation.invariant, violation.job) == (3, "j")
    assert violation.what == "it waited 3.0 s at a while b had a free slot"


def test_job_that_waits_for_a_full_slot_is_lawful() -> None:
    history = proven("b").accepted(job="long").awarded(job="long").started(job="long").accepted().wait(9)
    history.stopped(job="long").settled(job="long").ended(job="long").ran().ended()
    assert history.verdict() == []


def test_job_that_may_not_start_yet_does_not_wait() -> None:
    assert proven("b").accepted(held=True).wait(9).ran().ended().verdict() == []


@pytest.mark.parametrize(
    "trouble",
    [
        [("cut", {"nodes": ["a", "b"]})],
        [("frozen", {"node": "b"})],
        [("frozen", {"node": "a"})],
        [("killed", {"node": "b", "process": "daemon"})],
        [("killed", {"node": "a", "process": "ledger"})],
        [("frozen", {"node": "b"}), ("resumed", {"node": "b"})],
    ],
)
def test_waiting_through_trouble_is_lawful(trouble: list[tuple[str, dict[str, Any]]]) -> None:
    history = proven("b")
    for what, fields in trouble:
        history.driver(what, **fields)
    assert history.accepted().wait(4).ran(on="c").ended().verdict() == []


def test_waiting_long_after_trouble_is_not() -> None:
    history = proven("b").driver("cut", nodes=["a", "b"]).accepted().wait(30).driver("healed", nodes=["a", "b"])
    assert only(history.wait(9).ran().ended().verdict()).invariant == 3


def test_job_whose_attempt_was_lost_waits_again() -> None:
    history = proven("b", "c").accepted().awarded(to="c").started(on="c").killed("c").wait(9).ran(2).ended(2)
    assert only(history.verdict()).what.startswith("it waited 9.0 s at a while b had")


def test_owner_need_not_take_the_slot_where_the_job_failed() -> None:
    history = proven("b").accepted().awarded().started().stopped(outcome="failed")
    history.settled(outcome="failed", digest="").wait(9).ran(2, on="c").ended(2)
    assert history.verdict() == []


# -- invariant 4 -----------------------------------------------------------------------------------------------------


def test_node_may_not_run_more_than_its_slots() -> None:
    history = History().accepted().accepted(job="k").awarded().awarded(job="k").started(slots=1)
    history.started(job="k", slots=1).stopped(job="k").settled(job="k").ended(job="k")
    violation = only(history.stopped().settled().ended().verdict())
    assert (violation.invariant, violation.what) == (4, "b runs 2 jobs in 1 slots")


def test_slots_of_a_dead_daemon_are_free_again() -> None:
    history = History().accepted().awarded().started().killed("b").up("b").ran(2).ended(2)
    assert history.verdict() == []


# -- files and figures -----------------------------------------------------------------------------------------------


def test_trace_survives_what_it_cannot_write(tmp_path: Path) -> None:
    silent = Trace("", "a", "1")
    silent.note("up")
    nowhere = Trace(str(tmp_path / "missing" / "file"), "a", "1")
    nowhere.note("up")
    assert (silent.on, nowhere.lost) == (False, 2)
    full = Trace("/dev/full", "a", "1")
    full.note("up")
    assert full.lost == 1


def test_traces_of_several_daemons_are_read_in_order_of_time(tmp_path: Path) -> None:
    one, two = (Trace(str(tmp_path / name), name, "1") for name in ("one", "two"))
    for number in range(20):
        random.choice([one, two]).note("ended", job=str(number), state="done", attempt=1, digest=digest({"n": number}))
    with (tmp_path / "one").open("ab") as torn:
        torn.write(b'{"mono": 12')
    one.close()
    two.close()
    events = load([tmp_path / "one", tmp_path / "two", tmp_path / "missing"])
    assert [event["job"] for event in events] == [str(number) for number in range(20)]


def test_digest_depends_on_the_content_alone() -> None:
    assert digest({"a": 1, "b": [2, {"d": 4, "c": 3}]}) == digest({"b": [2, {"c": 3, "d": 4}], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_recovery_counts_from_the_kill_to_the_next_start() -> None:
    history = History().accepted().awarded().started().killed("b", "runner").wait(0.3).started(2, on="c")
    history.killed("c").wait(0.5).started(3).killed("a").wait(9).up("a").killed("b").wait(1).started(1000, on="c")
    found = recoveries(history.events)
    assert [round(seconds, 1) for seconds in found.runner] == [0.3]
    assert [round(seconds, 1) for seconds in found.daemon] == [0.5, 1.0]


def test_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([], 50) is None
    assert percentile([3, 1, 2], 50) == 2
    assert percentile(range(1, 101), 99) == 99
