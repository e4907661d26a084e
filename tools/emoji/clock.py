"""How long to train: so many steps, or so many minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

TELL_EVERY = 50


class Clock:
    """Iterate over it for step numbers from 1 on; `part` (0 to 1) is how much of the training is over."""

    def __init__(self, name: str, *, steps: int | None = None, minutes: float | None = None) -> None:
        if (steps is None) == (minutes is None):
            raise ValueError("give either steps or minutes")
        self._name, self._steps, self._seconds = name, steps, 60 * (minutes or 0.0)
        self.step, self.part = 0, 0.0

    def __iter__(self) -> Iterator[int]:
        began = time.monotonic()
        while True:
            spent_s = time.monotonic() - began
            self.part = self.step / self._steps if self._steps else spent_s / self._seconds
            if self.part >= 1:
                return
            self.step += 1
            yield self.step

    def tell(self, what: Callable[[], str]) -> None:
        """Now and then, print how it goes."""
        if self.step % TELL_EVERY == 0:
            print(f"{self._name}: step {self.step} ({self.part:.0%})  {what()}", flush=True)
