"""Small parts of the runners' side: reasons of exits, back-off, the pulse, what the kit packs."""

from __future__ import annotations

import signal

import msgspec
import pytest

from outbid_capabilities import runner_kit
from outbid_contracts import runner as wire
from outbid_node.runners.limits import BackOff, Pulse
from outbid_node.runners.process import REPORT_CHARS, Exit, last_words, report


@pytest.mark.parametrize(
    ("exit", "text"),
    [
        (Exit(0), "ended with status 0"),
        (Exit(3, "one\ntwo\n\n"), "ended with status 3; last words: two"),
        (Exit(-signal.SIGSEGV), "killed by SIGSEGV"),
        (Exit(-9), "killed by SIGKILL (out of memory?)"),
        (Exit(-9, by_us=True), "killed by SIGKILL"),
        (Exit(-200), "killed by signal 200"),
        (Exit(0xC0000005), "ended with status 0xc0000005"),
    ],
)
def test_an_exit_is_told_in_words(exit: Exit, text: str) -> None:
    assert str(exit) == text


def test_the_last_words_are_the_fatal_error_not_the_list_of_modules_after_it() -> None:
    tail = "loading\nFatal Python error: Segmentation fault\n\nCurrent thread…\n\nExtension modules: zmq (total: 1)\n"
    assert last_words(tail) == "Fatal Python error: Segmentation fault"
    assert last_words("") == ""
    assert len(last_words("x" * 1000)) == 300


def test_of_a_dump_of_many_threads_the_one_that_crashed_is_reported() -> None:
    others = "Thread 0x1 (most recent call first):\n  File x\n\n" * 1000
    dump = f"noise\nFatal Python error: Aborted\n\n{others}Current thread 0x2:\n  File y\n\n{others}"
    assert report(dump) == "noise\nFatal Python error: Aborted\n\nCurrent thread 0x2:\n  File y\n"
    assert len(report("x" * 100_000)) == REPORT_CHARS


def test_the_back_off_grows_to_a_minute_and_one_success_ends_it() -> None:
    back_off = BackOff()
    delays = [back_off.crashed("it broke", now=100.0) for _ in range(12)]
    assert delays == sorted(delays)
    assert (delays[0], delays[1], delays[-1]) == (0.0, 0.5, 60.0)
    assert back_off.blocked(130.0) == "crashed 12 times in a row (it broke); next try in 30.0 s"
    assert back_off.blocked(160.0) == ""
    back_off.succeeded()
    assert back_off.crashed("it broke", now=200.0) == 0.0


def test_the_pulse_counts_silent_ticks_and_forgets_them_at_a_sign() -> None:
    pulse = Pulse()
    assert [pulse.tick() for _ in range(4)] == [0, 1, 2, 3]
    pulse.heard = True
    assert [pulse.tick() for _ in range(2)] == [0, 1]


def test_what_is_too_large_for_the_daemon_is_refused_by_the_kit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_kit, "MAX_MESSAGE_BYTES", 2**20)
    assert len(runner_kit.pack({"type": "done"}, (bytes(2**20),))) == 2
    with pytest.raises(runner_kit.RunError, match="the limit is 1 MiB"):
        runner_kit.pack({"type": "done"}, (bytes(2**20 + 1),))


def test_memory_is_measured() -> None:
    used = runner_kit.memory_mib()
    assert used is None or 5 < used < 10_000


@pytest.mark.parametrize("count", [2, 15, 16, 64])
def test_ends_that_go_together_are_read_as_they_were_said(count: int) -> None:
    ends = [{"type": "done", "attempt": f"a/{n}", "result": {"n": n}} for n in range(count - 1)]
    ends.append({"type": "failed", "attempt": "b/1", "message": "no"})
    packed = runner_kit.batch([runner_kit.pack(end)[0] for end in ends])
    read = msgspec.msgpack.decode(packed, type=wire.FromRunner)
    assert read == wire.EndBatch(items=[msgspec.convert(end, wire.RunDone | wire.RunFailed) for end in ends])


def test_one_end_alone_goes_as_it_is() -> None:
    end = runner_kit.pack({"type": "cancelled", "attempt": "a/1"})[0]
    assert msgspec.msgpack.decode(runner_kit.batch([end]), type=wire.FromRunner) == wire.RunCancelled(attempt="a/1")
