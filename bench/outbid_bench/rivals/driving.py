"""Callers that keep so many jobs in flight: what was counted, in every system alike."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from typing import TypeVar

from outbid_bench.loops import run
from outbid_bench.stats import percentile

T = TypeVar("T")
Submit = Callable[[int], Awaitable[Awaitable[object]]]
"""Hand over a job with this number; what comes back when it was taken is to be awaited for the job's result."""

WARM_UP_S = 0.3


@dataclass(frozen=True, slots=True)
class Driven:
    """What one caller's process saw: finished jobs, those per second, and seconds from a job's submission until it was
    taken and until its result was there.
    """

    jobs: int
    per_s: float
    taken_p50_s: float
    p50_s: float
    p99_s: float


class Counted:
    """Collects the times of finished jobs."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self._taken: list[float] = []
        self._done: list[float] = []

    def running(self, seconds: float) -> bool:
        return time.perf_counter() - self.begun < seconds

    def add(self, begun: float, taken: float) -> None:
        """A job that was submitted at `begun`, was taken at `taken`, and is done now."""
        self._taken.append(taken - begun)
        self._done.append(time.perf_counter() - begun)

    def driven(self) -> Driven:
        return Driven(
            len(self._done),
            len(self._done) / (time.perf_counter() - self.begun),
            percentile(self._taken, 0.5),
            percentile(self._done, 0.5),
            percentile(self._done, 0.99),
        )


async def drive(submit: Submit, in_flight: int, seconds: float) -> Driven:
    """A new job for each that is done, until `seconds` are over and the last ones are back."""
    global _callers
    counted, _callers = Counted(), in_flight

    async def caller() -> None:
        while counted.running(seconds):
            begun = time.perf_counter()
            result = await submit(next(_numbers))
            taken = time.perf_counter()
            await result
            counted.add(begun, taken)

    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return counted.driven()


_numbers = itertools.count(1)


def window(send: Callable[[int], T], receive: Callable[[T], object], in_flight: int, seconds: float) -> Driven:
    """The same with calls that block: wait for the oldest job's result, then send a new one."""
    counted = Counted()
    pending: deque[tuple[int, float, float, T]] = deque()
    while pending or counted.running(seconds):
        while len(pending) < in_flight and counted.running(seconds):
            begun, number = time.perf_counter(), next(_numbers)
            sent = send(number)
            pending.append((number, begun, time.perf_counter(), sent))
        if pending:
            number, begun, taken, sent = pending.popleft()
            verify(number, receive(sent))
            counted.add(begun, taken)
    return counted.driven()


def poll_s() -> float:
    """Seconds between two looks for one job's result, where a system must be polled: all callers together ask two
    thousand times a second, which was best at 16 and 64 (asked more often, it has less time to work).
    """
    return _callers / 2000


_callers = 1


def verify(number: int, answer: object) -> None:
    """Raises RuntimeError if a job did not give back its number: it did not run, or another one's result came."""
    if answer != number:
        raise RuntimeError(f"job {number} gave {answer!r}, not its number")


# -- in a process of its own -------------------------------------------------------------------------------------------


def serve(opened: AbstractAsyncContextManager[Submit]) -> None:
    """Answer `{"in_flight": …, "seconds": …}` on standard input with what was Driven, until it closes or SIGTERM. The
    first line says that a job went through.
    """
    run(_serve(opened))


async def _serve(opened: AbstractAsyncContextManager[Submit]) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with opened as submit:
        await drive(submit, 1, WARM_UP_S)
        print("{}", flush=True)
        async for line in _lines():
            driven = await drive(submit, **json.loads(line))
            print(json.dumps(asdict(driven)), flush=True)


async def _lines() -> AsyncIterator[bytes]:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        yield line
