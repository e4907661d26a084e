"""A bound on how often something is done."""

from __future__ import annotations

import time
from collections.abc import Callable


class Rate:
    """At most `most` a second, counted in whole seconds. `left_out` counts what was too much since it was last
    collected.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._second = 0
        self._done = 0
        self._left_out = 0

    def take(self) -> bool:
        second = int(self._clock())
        if second != self._second:
            self._second, self._done = second, 0
        if self._done >= self._most:
            self._left_out += 1
            return False
        self._done += 1
        return True

    def left_out(self) -> int:
        """How many were refused since this was asked last."""
        found, self._left_out = self._left_out, 0
        return found
