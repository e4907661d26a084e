"""What was asked for on the command line, as the subsets see it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from outbid_contracts.policy import Goal

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Simulation:
    """One run of the placement simulator."""

    nodes: int = 5
    load: float = 0.7
    policy: Goal = "fastest"
    seed: int = 1
    bursty: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """`folder` is a temporary one, for states and logs. `quick`: rough figures in a fraction of the time."""

    folder: Path
    rounds: int = 5
    quick: bool = False
    threads: int | None = None
    """Of language models; None: as many as a node would take."""
    simulation: Simulation | None = None
    """Instead of the whole study."""

    def few_or_many(self, few: T, many: T) -> T:
        return few if self.quick else many

    def few(self, items: Sequence[T], count: int) -> Sequence[T]:
        """The first `count` when quick, else all."""
        return items[:count] if self.quick else items

    def say(self, text: str) -> None:
        """Progress, on standard error: the tables go to standard output."""
        print(f"… {text}", file=sys.stderr, flush=True)
