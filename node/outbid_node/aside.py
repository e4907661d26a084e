"""One thread beside the event loop for what is read at each beat: files below /sys and /proc, drivers.

All readers share it, and it waits until the loop is done with its beat: three threads that read while the loop worked
handed the interpreter's lock to and fro at every file, some three hundred times a second, and took a third of what a
daemon at rest took (docs/decisions/0020-cost-at-rest.md).
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

log = logging.getLogger(__name__)

PAUSE_S = 0.004
"""From the first of several orders to the reading. A beat takes the loop some 2 ms."""

STUCK_S = 1.0
"""A reading that takes longer (a driver or a network disk that hangs) holds up those behind it for so long."""

T = TypeVar("T")
Work = Callable[[], None]


class _Hand:
    """A thread that works off what it is given; `replaced` when it does not come back."""

    def __init__(self) -> None:
        self.works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self.began: float | None = None
        threading.Thread(target=self._run, name="aside", daemon=True).start()

    @property
    def stuck(self) -> bool:
        began = self.began
        return began is not None and time.monotonic() - began > STUCK_S

    def replaced(self) -> _Hand:
        """Another one for what waits. If this one does come back, its thread ends."""
        other = _Hand()
        with suppress(queue.Empty):
            while True:
                other.works.put(self.works.get_nowait())
        self.works.put(None)
        return other

    def _run(self) -> None:
        rested = True
        while (work := self.works.get()) is not None:
            if rested:
                time.sleep(PAUSE_S)
            self.began = time.monotonic()
            try:
                work()
            except Exception:  # each reader has its own way to tell a failure; this one has none
                log.exception("a reading failed", extra={"action": "reading_failed"})
            self.began, rested = None, self.works.empty()


_hand: _Hand | None = None
_lock = threading.Lock()


def do(work: Work) -> None:
    """Have it done in the thread, after what was asked for before."""
    global _hand
    with _lock:
        if _hand is None:
            _hand = _Hand()
        elif _hand.stuck:
            _hand = _hand.replaced()
        _hand.works.put(work)


async def read(reading: Callable[[], T]) -> T:
    """What it finds, or raises."""
    done: Future[T] = Future()
    do(lambda: _settle(done, reading))
    return await asyncio.wrap_future(done)


def _settle(done: Future[T], reading: Callable[[], T]) -> None:
    if done.set_running_or_notify_cancel():
        try:
            done.set_result(reading())
        except Exception as error:
            done.set_exception(error)
