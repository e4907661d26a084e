"""Resources of this machine for the presence message: what is cheap at once, the rest in `aside`, each part alone."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from outbid_contracts.messages import Gpu, Resources
from outbid_node import aside
from outbid_node.resources import apple, battery, temperatures
from outbid_node.resources.amd import Amd
from outbid_node.resources.files import Files
from outbid_node.resources.nvidia import Nvidia

log = logging.getLogger(__name__)

FAST_AGE_S = 1.0
BATTERY_AGE_S = 1.0
"""So that pulling the plug is seen with the next heartbeat."""
GPU_AGE_S = 2.0
TEMPERATURE_AGE_S = 5.0
STORAGE_AGE_S = 10.0
NOTHING_AGE_S = 10.0
"""Of a part that found nothing: no battery, no such card."""
ONCE_S = float("inf")
STUCK_S = 30.0
"""A part that takes longer (a network disk that is gone) counts as unknown until it answers."""

Values = dict[str, Any]


@dataclass(slots=True)
class Part:
    """Something that is read at most every `age_s` seconds."""

    name: str
    age_s: float
    read: Callable[[], Values]
    values: Values = field(default_factory=dict)
    due: float = float("-inf")
    asked: bool = False
    began: float | None = None
    """Since when it is being read; None while it is not, infinity once it has been given up."""
    complaint: str = ""
    done: bool = False

    @property
    def next_s(self) -> float:
        nothing = self.done and not self.complaint and not any(self.values.values())
        return max(self.age_s, NOTHING_AGE_S) if nothing else self.age_s


class ResourceProbe:
    """`read()` takes well under a millisecond whatever the hardware does.

    `storage` is the folder whose disk counts. `root`, `nvml` and `platform` are for tests.
    """

    def __init__(
        self, storage: Path | None = None, *, root: Path = Path("/"), nvml: Any = None, platform: str = sys.platform
    ) -> None:
        self._fast: Values = {}
        self._fast_due = float("-inf")
        self._cpu_times: Sequence[float] | None = None
        self._parts = _parts(storage, Files(root), nvml, platform)
        self.drawn: Callable[[], Values] = dict
        """`power_w` and `power_source`, from the meter."""

    def read(self) -> Resources:
        """What is known now; parts that have grown old are read anew in the background."""
        now = time.monotonic()
        if now >= self._fast_due:
            self._fast_due = now + FAST_AGE_S
            self._fast = self._cpu_and_memory()
        self._ask_for_old_parts(now)
        return self._put_together()

    async def first(self, within_s: float = 2.0) -> Resources:
        """As `read`, once every part has been read at least once or the time is over."""
        deadline = time.monotonic() + within_s
        found = self.read()
        while not all(part.done for part in self._parts) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
            found = self.read()
        return found

    def _put_together(self) -> Resources:
        values = self._fast | self.drawn()
        gpus: list[Gpu] = []
        for part in self._parts:
            for key, value in part.values.items():
                if key == "gpus":
                    gpus += value
                else:
                    values[key] = value
        gpus.sort(key=lambda gpu: -(gpu.memory_mib or 0))
        if gpus:
            values |= {"gpus": tuple(gpus), "gpu": gpus[0].name, "gpu_memory_mib": gpus[0].memory_mib}
        return Resources(**values)

    def _cpu_and_memory(self) -> Values:
        memory = psutil.virtual_memory()
        return {
            "cpu_count": psutil.cpu_count() or 1,
            "cpu_percent": self._cpu_percent(),
            "memory_mib": memory.total >> 20,
            "memory_free_mib": memory.available >> 20,
        }

    def _cpu_percent(self) -> float | None:
        """Since the last reading; None at the first. (psutil.cpu_percent would share that state with other callers.)"""
        times = psutil.cpu_times()
        before, self._cpu_times = self._cpu_times, times
        if before is None:
            return None
        spent = [max(0.0, new - old) for new, old in zip(times, before, strict=True)]
        counted = {name: value for name, value in zip(times._fields, spent, strict=True) if "guest" not in name}
        total = sum(counted.values())
        idle = counted.get("idle", 0.0) + counted.get("iowait", 0.0)
        return round(100 * (1 - idle / total), 1) if total > 0 else None

    # -- the parts ------------------------------------------------------------------------------------------------

    def _ask_for_old_parts(self, now: float) -> None:
        for part in self._parts:
            if part.began is not None and now - part.began > STUCK_S:
                _complain(part, f"no answer for {STUCK_S:.0f} s")
                part.began = float("inf")
            if not part.asked and now >= part.due:
                part.asked, part.due = True, now + part.next_s
                aside.do(partial(_refresh, part))


def _refresh(part: Part) -> None:
    part.began = time.monotonic()
    try:
        part.values = part.read()
        part.complaint = ""
    except Exception as error:
        _complain(part, f"{type(error).__name__}: {error}")
    part.done, part.began, part.asked = True, None, False


def _complain(part: Part, why: str) -> None:
    """Once for each reason, not once a second."""
    part.values = {}
    if part.complaint != why:
        part.complaint = why
        log.warning("%s cannot be read: %s", part.name, why, extra={"action": "probe_failed", "part": part.name})


def _parts(storage: Path | None, files: Files, nvml: Any, platform: str) -> list[Part]:
    linux = platform == "linux"
    nvidia, amd = Nvidia(files, nvml), Amd(files)
    parts = [
        Part("battery", BATTERY_AGE_S, (lambda: battery.from_sysfs(files)) if linux else battery.from_psutil),
        Part("temperatures", TEMPERATURE_AGE_S, lambda: _temperatures(files, linux)),
        Part("NVIDIA GPU", GPU_AGE_S, lambda: {"gpus": nvidia.read()}),
    ]
    if linux:
        parts.append(Part("AMD GPU", GPU_AGE_S, lambda: {"gpus": amd.read()}))
    if platform == "darwin" and apple.is_apple_silicon():
        parts.append(Part("Apple GPU", ONCE_S, lambda: {"gpus": apple.read()}))
    if storage is not None:
        parts.append(Part("storage", STORAGE_AGE_S, lambda: _storage(storage)))
    return parts


def _storage(folder: Path) -> Values:
    disk = psutil.disk_usage(str(folder))
    return {"storage_mib": disk.total >> 20, "storage_free_mib": disk.free >> 20}


def _temperatures(files: Files, linux: bool) -> Values:
    found = temperatures.from_sysfs(files) if linux else temperatures.from_psutil()
    return {"temperatures_c": found} if found else {}
