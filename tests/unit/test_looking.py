"""What a node tells while somebody looks on: for how long, how much at most, and nothing that it must not."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator

import pytest

from outbid_contracts.codec import decode, encode
from outbid_contracts.ids import NodeId
from outbid_contracts.live import WATCH_FOR_S, LogLine, Watch
from outbid_node.looking import log_tap
from outbid_node.looking.log_tap import LINES_S, REMEMBERED, SILENT, LogTap
from outbid_node.looking.rate import Rate
from outbid_node.looking.watchers import Watchers


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_a_watch_asks_for_ends_by_itself_and_each_word_lengthens_only_that() -> None:
    watchers = Watchers()
    watchers.heard(Watch(auctions=True, logs="warning"), 0.0)
    watchers.heard(Watch(jobs=True, logs="debug"), 5.0)
    assert watchers.auctions(WATCH_FOR_S - 0.1)
    assert not watchers.auctions(WATCH_FOR_S)
    assert watchers.jobs(5.0 + WATCH_FOR_S - 0.1)
    assert watchers.logs(1.0) == logging.DEBUG
    assert watchers.logs(5.0 + WATCH_FOR_S) is None


def test_the_lowest_level_that_anybody_wants_is_told_until_its_time_is_over() -> None:
    watchers = Watchers()
    watchers.heard(Watch(logs="debug"), 0.0)
    watchers.heard(Watch(logs="error"), 8.0)
    assert watchers.logs(9.0) == logging.DEBUG
    assert watchers.logs(WATCH_FOR_S + 1) == logging.ERROR


def test_beyond_the_rate_things_are_counted_and_not_done() -> None:
    clock = Clock()
    rate = Rate(3, clock)
    assert [rate.take() for _ in range(5)] == [True, True, True, False, False]
    clock.now = 1.0
    assert rate.take()
    assert (rate.left_out(), rate.left_out()) == (2, 0)


log = logging.getLogger("outbid_node.test_looking")


@pytest.fixture
async def tap() -> AsyncIterator[LogTap]:
    log.setLevel(logging.DEBUG)
    tap = LogTap()
    tap.node, tap.name_of_node = NodeId("7k2f9qzt"), "pi"
    tap.install()
    yield tap
    tap.remove()


async def told(tap: LogTap) -> list[LogLine]:
    """Collects what is sent from now on, of every level."""
    lines: list[LogLine] = []
    tap.wanted_from, tap.send = logging.DEBUG, lines.append
    return lines


async def turn() -> None:
    """What was handed to the loop by now has run after this."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_lines_of_any_thread_go_out_on_the_loop(tap: LogTap) -> None:
    lines = await told(tap)
    threads: list[int] = []

    def send(line: LogLine) -> None:
        lines.append(line)
        threads.append(threading.get_ident())

    tap.send = send
    await asyncio.to_thread(log.warning, "from %s", "afar", extra={"action": "tested", "node": "b"})
    await turn()
    assert [(line.text, line.action, line.level, line.fields) for line in lines] == [
        ("from afar", "tested", "warning", {"node": "b"})
    ]
    assert (lines[0].node, lines[0].name) == ("7k2f9qzt", "pi")
    assert threads == [threading.get_ident()]


async def test_nothing_goes_out_that_nobody_wants_and_the_last_lines_are_remembered(tap: LogTap) -> None:
    lines = await told(tap)
    tap.wanted_from = None
    for number in range(REMEMBERED + 10):
        log.info("line %d", number)
    tap.wanted_from = logging.ERROR
    log.warning("unwanted")
    await turn()
    assert not lines
    assert [line.text for line in tap.last(logging.DEBUG, 2)] == [f"line {REMEMBERED + 9}", "unwanted"]
    assert len(tap.last(logging.DEBUG, 1000)) == REMEMBERED
    assert [line.text for line in tap.last(logging.WARNING, 1000)] == ["unwanted"]


async def test_a_flood_of_lines_is_cut_and_said_to_be(tap: LogTap) -> None:
    clock = Clock()
    tap._rate = Rate(LINES_S, clock)
    lines = await told(tap)
    for _ in range(LINES_S + 50):
        log.info("again")
    await turn()
    assert len(lines) == LINES_S
    clock.now = 1.0
    log.info("later")
    await turn()
    assert (lines[-1].text, lines[-1].dropped) == ("later", 50)


async def test_a_line_about_a_line_that_could_not_be_sent_is_not_sent(tap: LogTap) -> None:
    lines = await told(tap)

    def fail(line: LogLine) -> None:
        lines.append(line)
        log.warning("not sent")

    tap.send = fail
    logging.getLogger(SILENT).warning("not sent to mesh.log: the buffer is full")
    log.warning("something")
    for _ in range(5):
        await turn()
    assert [line.text for line in lines] == ["something"]


async def test_no_value_that_was_logged_can_break_a_line(tap: LogTap) -> None:
    class Nasty:
        def __str__(self) -> str:
            raise RuntimeError

    lines = await told(tap)
    odd = {"name_": "file\udcff", "big": 2**90, "long": "x" * 10_000, "ratio": 0.5, "many": [1, {"a": None}]}
    tap.handle(log.makeRecord(log.name, logging.WARNING, "", 0, "odd \udcff %s", ("y" * 10_000,), None, extra=odd))
    for text, value in (("%s", Nasty()), ("%d", "not a number")):  # to the others it would be a failed test
        tap.handle(log.makeRecord(log.name, logging.WARNING, "", 0, text, (value,), None))
    try:
        raise ValueError("deep inside")
    except ValueError:
        log.exception("broke")
    await turn()
    assert [line.text[:6] for line in lines] == ["odd ? ", "broke"]
    assert tap.untellable == 2
    assert all(decode(encode(line), LogLine) == line for line in lines)
    assert len(encode(lines[0])) < 5000
    assert lines[0].fields["ratio"] == 0.5
    assert "ValueError: deep inside" in lines[1].fields["traceback"]


async def test_lines_of_a_program_around_the_node_are_its_own(tap: LogTap) -> None:
    lines = await told(tap)
    logging.getLogger("shop.customers").error("card 4111 1111 1111 1111")
    await turn()
    assert not lines
    assert "4111" not in str(tap.last(logging.DEBUG, 1000))


async def test_a_line_written_after_the_loop_is_closed_does_no_harm() -> None:
    tap = LogTap()
    loop = asyncio.new_event_loop()
    loop.close()
    tap._loop, tap.wanted_from = loop, logging.DEBUG
    tap.handle(logging.makeLogRecord({"name": "outbid_node.x", "levelno": logging.INFO, "msg": "late"}))
    assert [line.text for line in tap.last(logging.DEBUG, 9)] == ["late"]


def test_levels_have_the_names_of_the_contract() -> None:
    assert [log_tap.level_of(number) for number in (5, 10, 20, 25, 30, 40, 50, 60)] == [
        "debug",
        "debug",
        "info",
        "info",
        "warning",
        "error",
        "critical",
        "critical",
    ]
