"""What the dashboard knows of the mesh, without a terminal and without a mesh."""

from __future__ import annotations

import msgspec

from outbid_contracts.admin import Sleeper
from outbid_contracts.errors import ErrorBody
from outbid_contracts.events import Awarded, Chunk, Ended, JobEvent, Progressed, Waiting
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.requests import NodeView
from outbid_tui.state import FORGOTTEN_AFTER_S, KEPT_JOBS, KEPT_LOGS, MOST_UNKNOWN, SAMPLES, SILENT_BEATS, MeshState
from tests.tui.imagined import job, log_line, presence

FIRST = NodeId("n0000000")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_machine_that_falls_silent_is_away_and_one_look_tells_it() -> None:
    clock = Clock()
    state = MeshState(clock=clock)
    state.apply(presence(0))
    assert state.look_around() is None
    clock.now_s += SILENT_BEATS + 0.1
    assert state.look_around() == "nodes"
    assert state.look_around() is None
    assert state.counts().up == 0
    assert state.counts().away == 1
    assert state.watts_now() is None
    state.apply(presence(0, seq=2))
    assert state.look_around() == "nodes"
    assert state.counts().up == 1


def test_an_older_heartbeat_is_not_believed_over_a_newer_but_one_after_a_restart_is() -> None:
    state = MeshState()
    state.apply(presence(0, seq=50))
    state.apply(presence(0, seq=49))
    assert state.machines[FIRST].presence.seq == 50
    state.apply(msgspec.structs.replace(presence(0, seq=1), boot="another"))
    assert state.machines[FIRST].presence.seq == 1


def test_a_listing_neither_repeats_a_reading_nor_makes_a_silent_node_seem_heard() -> None:
    clock = Clock()
    state = MeshState(clock=clock)
    state.apply(presence(0, seq=5))
    clock.now_s += SILENT_BEATS + 1
    state.took_nodes([NodeView(presence=presence(0, seq=5), age_s=SILENT_BEATS + 1)])
    assert len(state.machines[FIRST].cpu) == 1
    assert state.machines[FIRST].away(clock.now_s)


def test_a_machine_is_forgotten_once_it_is_known_as_away_or_long_silent() -> None:
    clock = Clock()
    state = MeshState(clock=clock)
    state.apply(presence(0))
    state.apply(presence(1))
    sleeper = Sleeper(node=FIRST, name="gaming-pc", last_seen_ms=1)
    state.took_nodes([], away=(sleeper,))
    assert FIRST in state.machines, "it was heard a moment ago"
    assert state.sleepers() == []
    clock.now_s += SILENT_BEATS + 1
    state.took_nodes([], away=(sleeper,))
    assert FIRST not in state.machines
    assert state.sleepers() == [sleeper]
    assert state.name_of(FIRST) == "gaming-pc"
    clock.now_s += FORGOTTEN_AFTER_S
    state.took_nodes([], away=(sleeper,))
    assert state.machines == {}


def test_events_of_an_unknown_job_have_its_record_asked_for_and_change_nothing_else() -> None:
    state = MeshState()
    events: tuple[JobEvent, ...] = (
        Waiting(job=JobId("a"), reason="busy"),
        Chunk(job=JobId("b"), seq=0, attempt=1, data={}),
        Ended(job=JobId("c"), error=ErrorBody(code="x", message="x")),
    )
    for event in events:
        assert state.apply(event) == "jobs"
    assert state.unknown == {"a", "b", "c"}
    assert state.jobs == {}


def test_progress_is_shown_until_the_record_tells_of_another_attempt() -> None:
    state = MeshState()
    record = job(5, 3)
    assert record.state == "running"
    state.took_jobs([record])
    state.apply(Progressed(job=record.id, step=3, steps=8, note="denoising", eta_s=1.5))
    assert (state.jobs[record.id].step, state.jobs[record.id].note) == (3, "denoising")
    assert not state.unknown
    state.apply(Awarded(job=record.id, node=FIRST, name="gaming-pc", attempt=2, promised_s=1.0))
    assert state.unknown == {record.id}
    state.took_jobs([msgspec.structs.replace(record, attempts=record.attempts * 2)])
    assert not state.unknown
    assert (state.jobs[record.id].note, state.jobs[record.id].eta_s) == ("", None)


def test_an_answer_from_before_does_not_bring_an_ended_job_back_to_life() -> None:
    state = MeshState()
    running = job(5, 3)
    state.took_jobs([msgspec.structs.replace(running, state="done", ended_ms=running.created_ms + 5)])
    state.took_jobs([running])
    assert state.jobs[running.id].record.state == "done"


def test_everything_is_bounded_whatever_comes() -> None:
    state = MeshState()
    for number in range(KEPT_JOBS + 500):
        state.took_jobs([job(number, 5)])
    assert len(state.jobs) == KEPT_JOBS
    assert sum(view.record.ended_ms is None for view in state.jobs.values()) == 10, "those under way are kept"
    for number in range(MOST_UNKNOWN + 10):
        state.apply(Waiting(job=JobId(f"u{number}"), reason=""))
    assert len(state.unknown) == MOST_UNKNOWN
    for seq in range(SAMPLES + 10):
        state.apply(presence(0, seq))
    assert len(state.machines[FIRST].cpu) == SAMPLES
    state.took_logs(log_line(number) for number in range(KEPT_LOGS + 10))
    assert len(state.logs) == KEPT_LOGS
    assert state.logs_seen == KEPT_LOGS + 10


def test_recalled_log_lines_go_where_their_time_is_and_none_is_there_twice() -> None:
    state = MeshState()
    state.took_logs([log_line(3), log_line(5)])
    state.recalled_logs([log_line(1), log_line(3), log_line(4)])
    assert list(state.logs) == [log_line(number) for number in (1, 3, 4, 5)]
    assert state.logs_told == 1
