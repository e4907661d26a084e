"""How much longer attempts take than their runners work on them: what a busy daemon adds to each of them.

A daemon with 64 jobs of a tenth of a millisecond in flight is through with each after 10 ms, of which nearly all is its
own queue. That says nothing about the speed of this node or of any other: what a node offers must not count it, or jobs
would flee to other nodes, which costs their owner more than it saves; and no node's promise is broken by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

NEWEST = 0.1
"""The weight of the newest attempt in the running mean."""

FORGOTTEN_S = 1.0
"""A daemon through with its work is as quick as ever."""


class Lag:
    """`clock`: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._mean_s = 0.0
        self._noted = -FORGOTTEN_S

    def note(self, seconds: float) -> None:
        """An attempt that is through now took so much longer than its runner."""
        self._mean_s = self.seconds + NEWEST * (seconds - self.seconds)
        self._noted = self._clock()

    @property
    def seconds(self) -> float:
        """What is to be expected of an attempt that ends now; 0 if none has for FORGOTTEN_S."""
        return self._mean_s if self._clock() - self._noted < FORGOTTEN_S else 0.0
