"""Takes the readings, in a thread: what is dear seldom, and what fails is not known until it works again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from outbid_contracts.messages import Resources
from outbid_node.config_sections import CourtesySection
from outbid_node.courtesy import idle
from outbid_node.courtesy.critical import critical_c
from outbid_node.courtesy.gpu_users import GpuUsers
from outbid_node.courtesy.processes import Names
from outbid_node.courtesy.readings import UNKNOWN, GpuUse, Readings
from outbid_node.resources.files import Files
from outbid_node.resources.nvidia import Nvidia

log = logging.getLogger(__name__)

GAMES_AGE_S = 5.0
GPU_AGE_S = 5.0
CRITICAL_AGE_S = 300.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Own:
    """What the node knows of itself. `runners`: pids of those with memory on a graphics processor."""

    resources: Resources = UNKNOWN
    runners: frozenset[int] = frozenset()
    running: int = 0
    extra_w: float = 0.0


class Aged(Generic[T]):
    """Read at most every `age_s`. `unknown` where that fails; a failure is logged once."""

    def __init__(self, what: str, age_s: float, unknown: T) -> None:
        self._what, self._age_s, self._unknown = what, age_s, unknown
        self._value = unknown
        self._due = float("-inf")
        self._complaint = ""

    def get(self, at: float, read: Callable[[], T]) -> T:
        if at < self._due:
            return self._value
        self._due = at + self._age_s
        try:
            self._value, self._complaint = read(), ""
        except Exception as error:
            self._value = self._unknown
            if (told := f"{type(error).__name__}: {error}") != self._complaint:
                self._complaint = told
                log.warning("%s not known: %s", self._what, told, extra={"action": "courtesy_blind"})
        return self._value


class Watch:
    """`root` and `nvml` are for tests."""

    def __init__(self, section: CourtesySection, *, root: Path = Path("/"), nvml: Any = None) -> None:
        files = Files(root)
        self._enabled = section.enabled
        self._idle = idle.usual(root=root)
        self._names = Names(section.games, root)
        self._users = GpuUsers(Nvidia(files, nvml), section.gpu_busy_percent)
        self._files = files
        self._games = Aged[tuple[str, ...]]("which games run is", GAMES_AGE_S, ())
        self._gpu_use = Aged[tuple[GpuUse, ...]]("who uses the graphics processor is", GPU_AGE_S, ())
        self._critical = Aged[Mapping[str, float]]("the critical temperatures are", CRITICAL_AGE_S, {})

    def read(self, own: Own) -> Readings:
        """May take some tenths of a second where a program is asked; never raises."""
        at, clock_s = time.monotonic(), time.time()
        if not self._enabled:
            return Readings(at=at, clock_s=clock_s)
        return Readings(
            at=at,
            clock_s=clock_s,
            resources=own.resources,
            idle_s=self._idle.look(at),
            games=self._games.get(at, self._names.matching),
            gpu_use=self._gpu_use.get(at, lambda: self._users.read(own.resources.gpus, own.runners, own.running)),
            critical_c=self._critical.get(at, lambda: critical_c(self._files)),
            running=own.running,
            extra_w=own.extra_w,
        )
