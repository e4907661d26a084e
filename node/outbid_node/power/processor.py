"""Processor time of the machine and of our runners: what a game or a compiler beside them takes is no job's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import psutil

Runner = tuple[str, str | None]
"""A runner's class and model, as the pool has them."""


@dataclass(frozen=True, slots=True)
class Worked:
    """Processor seconds since the last reading: of everything, and of each runner whose process could be read."""

    all_s: float
    runners_s: Mapping[Runner, float]
    utilisation: float
    """Of all cores, 0 to 1."""


class Processor:
    def __init__(self) -> None:
        self._all: tuple[float, float] | None = None
        self._processes: dict[int, tuple[psutil.Process, float]] = {}

    def read(self, pids: Mapping[Runner, int]) -> Worked:
        busy, idle = _machine()
        busy_before, idle_before = self._all or (busy, idle)
        self._all = busy, idle
        busy_s, idle_s = max(0.0, busy - busy_before), max(0.0, idle - idle_before)
        runners = {runner: spent for runner, pid in pids.items() if (spent := self._process(pid)) is not None}
        self._processes = {pid: kept for pid, kept in self._processes.items() if pid in pids.values()}
        return Worked(busy_s, runners, busy_s / (busy_s + idle_s) if busy_s else 0.0)

    def _process(self, pid: int) -> float | None:
        """A process that is new was started since the last reading: all of its time counts."""
        try:
            process, before = self._processes.get(pid) or (psutil.Process(pid), 0.0)
            times = process.cpu_times()
        except psutil.Error:
            self._processes.pop(pid, None)
            return None
        spent = times.user + times.system
        self._processes[pid] = process, spent
        return max(0.0, spent - before)


def _machine() -> tuple[float, float]:
    """Seconds busy and idle of all cores together. Linux counts guests as user time as well."""
    times = psutil.cpu_times()._asdict()
    idle = times.get("idle", 0.0) + times.get("iowait", 0.0)
    return sum(value for name, value in times.items() if not name.startswith("guest")) - idle, idle
