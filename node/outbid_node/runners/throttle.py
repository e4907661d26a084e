"""Holds a child to a share of the machine's time by pausing it, so that its owner's games and films stay smooth."""

from __future__ import annotations

import asyncio
from typing import Protocol

PERIOD_S = 0.05
"""Of working and pausing together: short enough for a cancellation, long enough for the scheduler."""
_LONGEST_PAUSE_S = 1.0
"""However long our own loop was held up: a runner that sleeps cannot answer pings."""


class Pausable(Protocol):
    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Throttle:
    """Duty cycle: for each second of work, (1 - share) / share seconds of pause, paid about every `PERIOD_S`.

    Only time in which it is `active` counts as work; an idle runner costs nothing and is not paused.
    """

    def __init__(self, process: Pausable, share: float, loop: asyncio.AbstractEventLoop) -> None:
        self._process, self._loop = process, loop
        self._ratio = (1 - share) / share
        self._slice_s = PERIOD_S * share
        self._worked_s = 0.0
        self._since = 0.0
        self._active = self._paused = self._closed = False
        self._timer: asyncio.TimerHandle | None = None

    def active(self, yes: bool) -> None:
        """Say whenever it begins or stops working."""
        self._count()
        self._active = yes
        if yes and self._timer is None and not self._closed:
            self._timer = self._loop.call_later(self._slice_s, self._turn)

    def close(self) -> None:
        """Never pause it again, and leave it awake."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._paused:
            self._process.resume()

    def _count(self) -> None:
        now = self._loop.time()
        if self._active and not self._paused:
            self._worked_s += now - self._since
        self._since = now

    def _turn(self) -> None:
        """The end of a stretch of work or of a pause."""
        self._count()
        self._timer = None
        if self._paused:
            self._paused = False
            self._process.resume()
        elif self._worked_s:
            self._paused = True
            self._process.pause()
            pause_s = min(_LONGEST_PAUSE_S, self._worked_s * self._ratio)
            self._worked_s = 0.0
            self._timer = self._loop.call_later(pause_s, self._turn)
            return
        if self._active:
            self._timer = self._loop.call_later(self._slice_s, self._turn)
