"""What a source shows while nothing of ours runs: a low quantile of the last hours, so that a game does not count."""

from __future__ import annotations

from collections import deque

WINDOW_S = 10.0
"""Samples are means over this time: single readings scatter, and their low quantile lies below the true mean."""
WINDOWS = 2000
"""About five hours of idling."""
QUANTILE = 0.1


class Idle:
    def __init__(self) -> None:
        self._means: deque[float] = deque(maxlen=WINDOWS)
        self._joules = 0.0
        self._seconds = 0.0
        self._watts: float | None = None

    def note(self, watts: float, seconds: float) -> None:
        self._joules += watts * seconds
        self._seconds += seconds
        if self._seconds >= WINDOW_S:
            self._means.append(self._joules / self._seconds)
            self._joules = self._seconds = 0.0
            self._watts = sorted(self._means)[int(QUANTILE * len(self._means))]

    def watts(self) -> float | None:
        """None if it was never seen idle."""
        if self._watts is None and self._seconds > 0:
            return self._joules / self._seconds
        return self._watts
