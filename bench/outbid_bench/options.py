"""What was asked for on the command line, as the subsets see it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """`folder` is a temporary one, for states and logs. `quick`: rough figures in a fraction of the time."""

    folder: Path
    rounds: int = 5
    quick: bool = False
    threads: int | None = None
    """Of language models; None: as many as a node would take."""

    def few_or_many(self, few: T, many: T) -> T:
        return few if self.quick else many

    def few(self, items: Sequence[T], count: int) -> Sequence[T]:
        """The first `count` when quick, else all."""
        return items[:count] if self.quick else items

    def say(self, text: str) -> None:
        """Progress, on standard error: the tables go to standard output."""
        print(f"… {text}", file=sys.stderr, flush=True)
