"""Both ends of a stream keep the same book, whatever is lost, late or doubled on the way."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid import ChatStream
from outbid_contracts.errors import NodeUnreachable
from outbid_contracts.events import Awarded, Chunk, Finished, JobEvent
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.pieces import Pieces

JOB = JobId("j")


def chunk(attempt: int, seq: int, text: str) -> Chunk:
    return Chunk(job=JOB, seq=seq, attempt=attempt, data={"text": text})


def awarded(attempt: int, chunks: int) -> Awarded:
    return Awarded(job=JOB, node=NodeId("n"), name="n", attempt=attempt, promised_s=1, chunks=chunks)


def done(text: str, attempt: int = 1) -> Finished:
    usage = {"prompt_tokens": 1, "completion_tokens": len(text)}
    result = {"text": text, "model": "m", "finish_reason": "stop", "usage": usage}
    return Finished(job=JOB, node=NodeId("n"), name="n", attempt=attempt, result=result)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_pieces_over_any_number_of_handovers_are_whole(sent: list[int], dice: random.Random) -> None:
    """Each attempt sends some pieces, of which its owner sees only a part before it goes on after them. Chunks of
    earlier attempts arrive late, in between.
    """
    pieces, base, late = Pieces(), 0, list[Chunk]()
    for attempt, count in enumerate(sent, 1):
        assert pieces.award(attempt, base)
        for seq in range(base, base + count):
            assert pieces.take(chunk(attempt, seq, f"{attempt}.{seq}")) == "taken"
            if late:
                assert pieces.take(dice.choice(late)) == "old"
        late += [chunk(attempt, seq, "late") for seq in range(base, base + count + 3)]
        base += dice.randint(0, count)
    assert len(pieces.data) >= base
    assert all(piece["text"].endswith(f".{n}") for n, piece in enumerate(pieces.data))


def test_a_piece_of_the_next_attempt_may_come_before_the_news_of_its_award() -> None:
    pieces = Pieces([{"text": "a"}, {"text": "b"}], attempt=1)
    assert pieces.take(chunk(2, 1, "B")) == "taken"
    assert pieces.award(2, 1)
    assert [piece["text"] for piece in pieces.data] == ["a", "B"]


def test_a_missing_piece_shows() -> None:
    pieces = Pieces()
    assert pieces.take(chunk(1, 0, "a")) == "taken"
    assert pieces.take(chunk(1, 2, "c")) == "hole"
    assert not Pieces().award(2, 1)


def test_events_kept_elsewhere_are_taken_in_up_to_the_first_hole() -> None:
    pieces = Pieces()
    pieces.replay(
        [awarded(1, 0), chunk(1, 0, "a"), chunk(1, 1, "x"), awarded(2, 1), chunk(2, 1, "b"), chunk(2, 3, "d")]
    )
    assert (pieces.attempt, [piece["text"] for piece in pieces.data]) == (2, ["a", "b"])


def test_what_comes_after_the_word_that_an_attempt_is_lost_is_void() -> None:
    """Also before the next award: where the owner closed the door, the caller does."""
    pieces = Pieces([{"text": "a"}], attempt=1)
    pieces.lose(1)
    assert pieces.take(chunk(1, 1, "late")) == "old"
    assert pieces.take(chunk(2, 1, "b")) == "taken"


# -- a chat ------------------------------------------------------------------------------------------------------------


async def read(events: list[JobEvent]) -> tuple[list[str], ChatStream]:
    async def arriving() -> Any:
        for event in events:
            yield event
        raise NodeUnreachable

    async def cancel(job: JobId) -> None:
        raise AssertionError("it had ended")

    stream = ChatStream(JOB, arriving(), cancel)
    return [piece.text async for piece in stream], stream


async def test_a_handover_is_silent() -> None:
    said, stream = await read(
        [awarded(1, 0), chunk(1, 0, "a"), chunk(1, 1, "b"), awarded(2, 2), chunk(2, 2, "c"), done("abc", 2)]
    )
    assert (said, stream.text, stream.handovers, stream.restarts) == (["a", "b", "c"], "abc", 1, 0)
    assert (await stream.reply()).attempt == 2


async def test_a_restart_begins_anew() -> None:
    said, stream = await read([awarded(1, 0), chunk(1, 0, "a"), awarded(2, 0), chunk(2, 0, "A"), done("A", 2)])
    assert (said, stream.text, stream.handovers, stream.restarts) == (["a", "A"], "A", 0, 1)


async def test_a_lost_attempt_before_the_first_piece_is_neither() -> None:
    said, stream = await read([awarded(1, 0), awarded(2, 0), chunk(2, 0, "a"), done("a", 2)])
    assert (said, stream.handovers, stream.restarts) == (["a"], 0, 0)


@pytest.mark.parametrize("again", [["b", "c", "d"], ["bc", "d"], ["bcd"]])
async def test_pieces_that_the_owner_had_not_seen_are_not_said_twice(again: list[str]) -> None:
    pieces = [chunk(2, n, text) for n, text in enumerate(again, 1)]
    said, stream = await read(
        [awarded(1, 0), *(chunk(1, n, text) for n, text in enumerate("abc")), awarded(2, 1), *pieces, done("abcd", 2)]
    )
    assert "".join(said) == stream.text == "abcd"
    assert (stream.handovers, stream.restarts) == (1, 0)


async def test_pieces_that_come_out_otherwise_the_second_time_count_as_a_restart() -> None:
    said, stream = await read(
        [awarded(1, 0), chunk(1, 0, "a"), chunk(1, 1, "b"), awarded(2, 1), chunk(2, 1, "x"), done("ax", 2)]
    )
    assert (said, stream.text, stream.restarts) == (["a", "b", "x"], "ax", 1)


async def test_what_no_piece_brought_comes_with_the_result() -> None:
    said, stream = await read([awarded(1, 0), chunk(1, 0, "a"), done("abc")])
    assert (said, stream.text) == (["a", "bc"], "abc")
    assert (await read([done("abc")]))[0] == ["abc"]
