"""What a watched job's events tell, also where machines are lost meanwhile."""

from __future__ import annotations

import doctest

from outbid_contracts.errors import NodeUnreachable
from outbid_contracts.events import AttemptLost, Awarded, Chunk, Ended, Finished, JobEvent, Progressed
from outbid_contracts.ids import JobId, NodeId
from outbid_tui.jobs.story import LINES, Story
from outbid_tui.widgets import gauge

JOB = JobId("j")
PI, PC = NodeId("pi000000"), NodeId("pc000000")


def awarded(node: NodeId, attempt: int, chunks: int = 0) -> Awarded:
    return Awarded(job=JOB, node=node, name=node[:2], attempt=attempt, promised_s=2.0, why="it is best", chunks=chunks)


def piece(seq: int, attempt: int, text: str) -> Chunk:
    return Chunk(job=JOB, seq=seq, attempt=attempt, data={"text": text})


def lost(attempt: int) -> AttemptLost:
    error = NodeUnreachable("pi does not answer").body()
    return AttemptLost(job=JOB, node=PI, attempt=attempt, error=error, retry=True)


def told(*events: JobEvent) -> Story:
    story = Story()
    for event in events:
        story.take(event)
    return story


def test_text_goes_on_where_another_machine_took_over() -> None:
    story = told(
        awarded(PI, 1), piece(0, 1, "so it "), piece(1, 1, "go"), lost(1), awarded(PC, 2, 1), piece(1, 2, "goes on")
    )
    assert story.text == "so it goes on"
    assert [look for _, look in story.lines] == ["accent", "dim", "warn", "accent", "dim"]
    assert "it goes on elsewhere" in story.lines[2][0]
    assert "runs it from piece 2" in story.lines[3][0]


def test_late_pieces_of_a_lost_attempt_are_not_shown_and_a_hole_is_told_once() -> None:
    story = told(awarded(PI, 1), piece(0, 1, "a"), lost(1), piece(1, 1, "X"), awarded(PC, 2, 1), piece(3, 2, "d"))
    assert story.text == "a"
    story.take(piece(4, 2, "e"))
    assert sum("pieces were lost" in line for line, _ in story.lines) == 1
    story.take(Finished(job=JOB, node=PC, name="pc", attempt=2, result={"text": "abcde"}))
    assert (story.text, story.ended) == ("abcde", True)


def test_steps_tell_how_far_it_is_and_an_error_ends_it() -> None:
    story = told(awarded(PI, 1), Progressed(job=JOB, step=3, steps=20, eta_s=75.0, note="denoising"))
    assert (story.step, story.steps, story.told) == (3, 20, "1:15 left  denoising")
    story.take(Ended(job=JOB, error=NodeUnreachable("nobody is left").body()))
    assert story.ended
    assert story.lines[-1] == ("node_unreachable: nobody is left", "bad")


def test_a_course_of_any_length_is_kept_short() -> None:
    story = told(*(awarded(PI, n) for n in range(1, LINES)))
    assert len(story.lines) == LINES
    assert story.lines[-2][0].startswith(f"attempt {LINES - 1}:")


def test_what_is_not_text_is_told_as_json() -> None:
    story = told(awarded(PI, 1), Finished(job=JOB, node=PI, name="pi", attempt=1, result={"digest": "ab", "runs": [1]}))
    assert '"digest": "ab"' in story.text


def test_doctests() -> None:
    assert doctest.testmod(gauge).failed == 0
