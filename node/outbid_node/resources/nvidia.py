"""NVIDIA graphics processors through NVML (the extra `nvidia`: nvidia-ml-py, which only calls the driver's library)."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from outbid_contracts.messages import Gpu
from outbid_node.resources.files import Files, asleep, text

T = TypeVar("T")

NVIDIA = "0x10de"
_DISPLAY = "0x03"
"""PCI class of display controllers."""

LOAD_WINDOW_S = 5.0
"""Over which the load by process is a mean."""

IMPORT_AGE_S = 60.0
"""Between two looks for a package that was not installed."""


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """Of one card: load and memory in percent of it, None where the driver does not tell."""

    pid: int
    busy_percent: float | None
    memory_percent: float | None


class NvmlMissing(Exception):
    """An NVIDIA GPU is here, but nothing to read it with."""


class Nvidia:
    """`nvml` None: the real module, if it is installed. No driver means no GPU, and is asked again at each read."""

    def __init__(self, files: Files, nvml: Any = None) -> None:
        self._files = files
        self._nvml = nvml
        self._begun = False
        self._last: list[Gpu] = []
        self._devices: list[str] = []
        self._cards: list[Path] = []
        self._import_at = float("-inf")

    def read(self) -> list[Gpu]:
        """Raises NvmlMissing, or an NVMLError that concerns the whole driver; the next read starts afresh."""
        asleep_here = self._sleeping()
        if asleep_here and all(asleep_here):
            return [_idle(gpu) for gpu in self._last]
        if not self._begin(has_gpu=bool(asleep_here)):
            return []
        self._last = self._each(self._gpu)
        return self._last

    def draws(self) -> list[tuple[float | None, float | None]]:
        """Of each card the joules since its driver was loaded (Volta and later count them), else the watts now.

        Empty while all sleep. Raises as `read`.
        """
        asleep_here = self._sleeping()
        if (asleep_here and all(asleep_here)) or not self._begin(has_gpu=bool(asleep_here)):
            return []
        return self._each(self._draw)

    def processes(self) -> list[list[GpuProcess]]:
        """Of each card those that compute or draw on it. Empty while all sleep. Raises as `read`."""
        asleep_here = self._sleeping()
        if (asleep_here and all(asleep_here)) or not self._begin(has_gpu=bool(asleep_here)):
            return []
        return self._each(self._processes)

    def _each(self, ask: Callable[[int], T]) -> list[T]:
        try:
            return [ask(index) for index in range(self._nvml.nvmlDeviceGetCount())]
        except Exception:
            self._end()
            raise

    def _draw(self, index: int) -> tuple[float | None, float | None]:
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        count = getattr(self._nvml, "nvmlDeviceGetTotalEnergyConsumption", None)
        joules = self._maybe(lambda: count(handle) / 1000) if count else None
        watts = self._maybe(lambda: self._nvml.nvmlDeviceGetPowerUsage(handle) / 1000) if joules is None else None
        return joules, watts

    def _processes(self, index: int) -> list[GpuProcess]:
        """NVML answers `not found` where there are no samples of load, and Windows has no memory by process."""
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = self._maybe(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        total = memory.total if memory is not None else 0
        found: dict[int, float | None] = {}
        for name in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
            for process in self._maybe(partial(getattr(nvml, name), handle)) or ():
                used = process.usedGpuMemory
                found[process.pid] = 100 * used / total if used is not None and 0 < used <= total else None
        busy: dict[int, list[float]] = {}
        since_us = int((time.time() - LOAD_WINDOW_S) * 1e6)
        for sample in self._maybe(partial(nvml.nvmlDeviceGetProcessUtilization, handle, since_us)) or ():
            busy.setdefault(sample.pid, []).append(float(sample.smUtil))
        means = {pid: sum(loads) / len(loads) for pid, loads in busy.items()}
        return [GpuProcess(pid, means.get(pid), found.get(pid)) for pid in sorted({*found, *means})]

    def _sleeping(self) -> list[bool]:
        """Of each NVIDIA display controller that Linux sees, whether it is powered down. NVML would wake it."""
        devices = self._files.names("sys/bus/pci/devices")
        if devices != self._devices:
            self._devices, self._cards = devices, [*filter(_is_card, self._files.glob("sys/bus/pci/devices/*"))]
        return [asleep(card) for card in self._cards]

    def _begin(self, *, has_gpu: bool) -> bool:
        """False if there is no driver."""
        if self._begun:
            return True
        if self._nvml is None and not self._import():
            if has_gpu:
                raise NvmlMissing("nvidia-ml-py is not installed; pip install 'outbid[nvidia]'")
            return False
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            absent = (self._nvml.NVML_ERROR_LIBRARY_NOT_FOUND, self._nvml.NVML_ERROR_DRIVER_NOT_LOADED)
            if getattr(error, "value", None) in absent:
                return False
            raise
        self._begun = True
        return True

    def _import(self) -> bool:
        """Looking for a package in vain reads every folder of Python's path: 0.3 ms."""
        if time.monotonic() < self._import_at:
            return False
        self._import_at = time.monotonic() + IMPORT_AGE_S
        with suppress(ImportError):
            self._nvml = importlib.import_module("pynvml")
        return self._nvml is not None

    def _end(self) -> None:
        self._begun = False
        with suppress(Exception):
            self._nvml.nvmlShutdown()

    def _gpu(self, index: int) -> Gpu:
        """What one device does not support is None."""
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = self._maybe(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        return Gpu(
            name=_text(self._maybe(lambda: nvml.nvmlDeviceGetName(handle))) or f"NVIDIA GPU {index}",
            vendor="nvidia",
            memory_mib=None if memory is None else int(memory.total) >> 20,
            memory_free_mib=None if memory is None else int(memory.free) >> 20,
            unified=memory is None,  # GB10, Jetson: the memory is the machine's
            busy_percent=self._maybe(lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
            temperature_c=self._temperature(handle),
            power_w=self._maybe(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        )

    def _temperature(self, handle: Any) -> float | None:
        """The second function is announced to go with CUDA 14; drivers before 2025 have only that one."""
        for name in ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"):
            if (ask := getattr(self._nvml, name, None)) is None:
                continue
            if (found := self._maybe(partial(ask, handle, 0))) is not None:
                return float(found)
        return None

    def _maybe(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except self._nvml.NVMLError as error:
            lost = (self._nvml.NVML_ERROR_UNINITIALIZED, self._nvml.NVML_ERROR_GPU_IS_LOST)
            if getattr(error, "value", None) in lost:
                raise
            return None


def _is_card(device: Path) -> bool:
    return text(device / "vendor") == NVIDIA and (text(device / "class") or "").startswith(_DISPLAY)


def _idle(gpu: Gpu) -> Gpu:
    return Gpu(
        name=gpu.name,
        vendor=gpu.vendor,
        memory_mib=gpu.memory_mib,
        memory_free_mib=gpu.memory_mib,
        unified=gpu.unified,
        busy_percent=0.0,
    )


def _text(name: str | bytes | None) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name or ""
