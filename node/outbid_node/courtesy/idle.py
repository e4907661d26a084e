"""How long nobody has touched this machine: the least of what its readers know, or not known at all.

A reader that is not sure says nothing. So a server without a keyboard has no person.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

Read = Callable[[], float | None]


@dataclass(slots=True)
class Source:
    """Asked at most every `age_s`, because some start a program. Between two readings the time goes on."""

    name: str
    age_s: float
    read: Read
    due: float = float("-inf")
    at: float = 0.0
    idle_s: float | None = None
    complaint: str = field(default="")

    def look(self, at: float) -> float | None:
        if at >= self.due:
            self.at, self.due = at, at + self.age_s
            self.idle_s = self._ask()
        return None if self.idle_s is None else self.idle_s + at - self.at

    def _ask(self) -> float | None:
        try:
            found = self.read()
        except Exception as error:  # a screen that is locked up, a program that hangs: said once
            told = f"{type(error).__name__}: {error}"
            if told != self.complaint:
                self.complaint = told
                log.info("%s does not tell the idle time: %s", self.name, told, extra={"action": "idle_unknown"})
            return None
        return None if found is None else max(0.0, found)


class Idle:
    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def look(self, at: float) -> float | None:
        """Seconds since somebody typed or moved the mouse. `at`: a clock that only goes forward."""
        known = [idle_s for source in self._sources if (idle_s := source.look(at)) is not None]
        return min(known, default=None)


def usual(platform: str = sys.platform, root: Path = Path("/")) -> Idle:
    """The readers of this platform."""
    if platform == "linux":
        from outbid_node.courtesy import idle_linux

        return Idle(idle_linux.sources(root))
    from outbid_node.courtesy import idle_elsewhere

    return Idle(idle_elsewhere.sources(platform))
