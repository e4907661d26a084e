"""Simulated time: an asyncio event loop whose clock jumps to the next timer instead of waiting for it.

The daemon's own classes run on it unchanged, hours of a mesh in seconds of this machine. Two runs that begin alike go
alike: there is one thread, and nothing comes from outside.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

T = TypeVar("T")

EPOCH_S = 1_750_000_000
"""Unix time at which simulated time is 0."""

cpu_s = time.thread_time
"""What a decision costs, whatever else the machine does; within `simulated` other functions of `time` tell simulated
time.
"""


class Stuck(RuntimeError):
    """Nothing is going to happen any more, but somebody still waits."""


class _Jump(selectors.SelectSelector):
    """No input ever comes; what the loop would sleep is added to its clock."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck
        self.now_s += max(0.0, timeout)
        return []


class Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now_s


@contextmanager
def simulated() -> Generator[Loop]:
    """The clocks that the daemon reads tell the loop's time. For one thread only."""
    loop = Loop()

    def nanoseconds() -> int:
        return int((EPOCH_S + loop.time()) * 1e9)

    clocks: Mapping[str, Any] = {
        "monotonic": loop.time,
        "perf_counter": loop.time,
        "time_ns": nanoseconds,
        "time": lambda: EPOCH_S + loop.time(),
    }
    try:
        with patch.multiple(time, **clocks):
            yield loop
    finally:
        loop.close()


class Meter:
    """Processor seconds that a part of the simulation takes: `spent_s`. Of what is metered within what is metered only
    the outer counts; what is `aside` counts nowhere.
    """

    def __init__(self) -> None:
        self.spent_s = 0.0
        self._running = False

    def call(self, what: Callable[[], T]) -> T:
        if self._running:
            return what()
        began = cpu_s()
        self._running = True
        try:
            return what()
        finally:
            self._running = False
            self.spent_s += cpu_s() - began

    def aside(self, what: Callable[[], T]) -> T:
        if not self._running:
            return what()
        began = cpu_s()
        self._running = False
        try:
            return what()
        finally:
            self._running = True
            self.spent_s -= cpu_s() - began

    def task(self, loop: asyncio.AbstractEventLoop, work: Any, **how: Any) -> asyncio.Task[Any]:
        """A task factory: the steps of every task count."""
        return asyncio.Task(self._steps(work), loop=loop, **how)

    async def _steps(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await _Steps(work, self)


class _Steps:
    def __init__(self, work: Coroutine[Any, Any, Any], meter: Meter) -> None:
        self._work = work
        self._meter = meter

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = functools.partial(self._work.send, None)
        while True:
            try:
                waits_for = self._meter.call(step)
            except StopIteration as stop:
                return stop.value
            try:
                step = functools.partial(self._work.send, (yield waits_for))
            except BaseException as raised:  # a cancellation goes on into the work
                step = functools.partial(self._work.throw, raised)
