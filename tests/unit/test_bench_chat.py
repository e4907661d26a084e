"""The arithmetic of the chat benchmark, and that no prompt of it can be in anybody's cache."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest

from outbid_bench.chat import Prompts
from outbid_bench.chat_asking import over_http
from outbid_bench.chat_engine import Answer, Clock, Messages
from outbid_bench.chat_found import Figures, Together
from outbid_bench.chat_report import section
from outbid_bench.chat_steps import READ, Steps
from outbid_bench.chat_turns import SAID, TURNS, Turns
from outbid_bench.chat_two_nodes import AUCTION, PREFER, TwoNodes


def answer(tokens: int = 4, first_s: float = 0.1, gaps_s: tuple[float, ...] = (0.01, 0.01, 0.02)) -> Answer:
    return Answer("text", tokens, first_s, first_s + sum(gaps_s), gaps_s)


def figures(per_s: float, first_s: float) -> Figures:
    return Figures([per_s, per_s], [first_s, first_s], [0.02, 0.02], [0.01, 0.01])


def test_an_empty_piece_is_neither_first_text_nor_a_token() -> None:
    clock = Clock()
    for text in (None, "", "a", "b"):
        clock.piece(text)
    found = clock.answer()
    assert (found.text, found.tokens, len(found.gaps_s)) == ("ab", 2, 1)
    assert 0 < found.first_s <= found.first_s + found.gaps_s[0] <= found.total_s


def test_what_the_engine_counted_goes_before_the_number_of_pieces() -> None:
    clock = Clock()
    clock.piece("two tokens")
    assert clock.answer(2).tokens == 2


def test_a_chat_without_text_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="without an answer"):
        Clock().answer(5)


def test_chats_at_once_count_together_and_pauses_of_all_go_into_one_percentile() -> None:
    found = Figures()
    chats = Together([answer(4, 0.1), answer(8, 0.3, (0.5,))], took_s=1.5, cpu_s=1.0)
    chats.add(Together([answer(4, 0.2)], took_s=0.5, cpu_s=0.6))
    found.add(chats)
    assert (found.per_s, found.first_s, found.gap_p99_s, found.cpu_s) == ([8.0], [0.2], [0.5], [0.1])


def test_the_added_time_is_taken_round_by_round() -> None:
    slow_then_quick, mesh = Figures(first_s=[0.9, 0.1]), Figures(first_s=[0.95, 0.11])
    added = mesh.added_first_s(slow_then_quick)
    assert (round(added.low, 3), round(added.high, 3)) == (0.01, 0.05)


def test_no_two_prompts_begin_alike() -> None:
    prompts = Prompts()
    begins = [prompts.story()[0]["content"] for _ in range(500)] + [prompts.opening() for _ in range(500)]
    assert len(set(begins)) == 1000


def test_the_limit_of_chats_together_is_what_reading_which_gains_nothing_and_writing_take() -> None:
    steps = Steps({1: [0.010], 4: [0.020], 8: [0.040], 16: [0.050], READ: [0.004 * READ]})
    assert steps.gain(8).median == pytest.approx(2.0)
    assert steps.limit(8, read=0, written=10).median == pytest.approx(2.0)
    assert steps.limit(8, read=10, written=10).median == pytest.approx((0.04 + 0.1) / (0.04 + 0.05))
    assert steps.limit(8, read=10, written=0).median == pytest.approx(1.0)


def test_a_conversation_grows_by_what_was_answered_and_the_comparison_begins_anew() -> None:
    asked: list[list[dict[str, str]]] = []

    async def ask(messages: Messages, max_tokens: int) -> Answer:
        asked.append([dict(message) for message in messages])
        return answer(first_s=0.1 * len(messages))

    turns = Turns()
    asyncio.run(turns.measure("x", ask, Prompts().opening))
    one, other, anew = asked[0:-1:2], asked[1:-1:2], asked[-1]
    for talk in (one, other):
        assert [len(messages) for messages in talk] == [2, 4, 6, 8, 10]
        assert all(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(talk))
    assert one[0][0] != other[0][0]
    assert anew[1:] == one[-1][1:]
    assert anew[0] not in (one[0][0], other[0][0])
    assert turns.turn("x", TURNS).median == pytest.approx(1.0)
    assert turns.last_of_anew("x").median == pytest.approx(1.0)


def test_only_the_turns_after_the_first_can_stay() -> None:
    found = TwoNodes()
    found.add(AUCTION, [0.1] * len(SAID), ["other", "n", "n", "n", "other"])
    found.add(PREFER, [0.1] * len(SAID), ["other"] * len(SAID))
    assert (found.stayed[AUCTION], found.stayed[PREFER]) == ([0.25], [1.0])
    assert not found.aim().met


async def _server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    pieces: list[dict[str, Any]] = [
        {"choices": [{"delta": {"role": "assistant"}}]},
        {"choices": [{"delta": {"content": "Hel"}}]},
        {"choices": [{"delta": {"content": "lo"}, "finish_reason": "length"}]},
        {"choices": [], "usage": {"completion_tokens": 7}},
    ]
    lines = "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces)
    writer.write(f"HTTP/1.1 200 OK\r\n\r\n{lines}data: [DONE]\n\n".encode())
    writer.close()


async def test_a_server_is_believed_how_many_tokens_it_wrote() -> None:
    server = await asyncio.start_server(_server, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await over_http(f"http://127.0.0.1:{port}")([{"role": "user", "content": "hi"}], 7)
    assert (found.text, found.tokens) == ("Hello", 7)


def test_the_aims_are_those_that_were_set() -> None:
    engine = "llama-cpp-python"
    found = {
        f"{engine}, called directly": {1: figures(100, 0.100)},
        f"Outbid with {engine}": {1: figures(96, 0.111), 8: figures(170, 0.5)},
        "xllamacpp's own server": {1: figures(100, 0.1), 8: figures(180, 0.5)},
    }
    turns, two = Turns({f"Outbid with {engine}": [[0.1] * 5]}, {f"Outbid with {engine}": [0.4]}), TwoNodes()
    for way in (AUCTION, PREFER):
        two.add(way, [0.1] * 5, ["n"] * 5)
    made = section([engine], found, turns, two, "about")
    assert [(aim.target, aim.met) for aim in made.aims] == [
        ("≥ 0.97x", False),
        ("≤ 10 ms", False),
        ("≥ 1.7x", True),
        ("≥ 0.95x", False),
        ("≤ 0.5x", True),
        ("≥ 0.9", True),
    ]
    assert [plot.name for plot in made.plots] == ["speed", "turns"]
    assert made.as_text()
