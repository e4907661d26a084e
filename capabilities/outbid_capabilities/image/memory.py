"""What to do when memory is short: know such an error, say how much there is, and take up less at each call."""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from outbid_capabilities.runner_kit import RunError

_WORDS = re.compile(r"out of memory|not enough memory|can't allocate memory|cannot allocate memory", re.IGNORECASE)
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) ?(bytes|[KMG]iB)?")
_MIB = {"bytes": 1 / 2**20, "KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0}


def is_shortage(error: BaseException) -> bool:
    """The processor's allocator, MPS and some CUDA libraries raise a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None


def shortage(error: BaseException, device: torch.device, what: str) -> RunError:
    """For a job that does not fit at all: how much was asked for in vain, and how much there is."""
    found = _ASKED.search(str(error))
    asked = f"{float(found[1]) * _MIB[found[2] or 'bytes']:.0f} MiB more" if found else "more memory"
    there = free_mib(device)
    left = f"; {there:.0f} MiB are free" if there is not None else ""
    return RunError(f"{what} needs {asked} than this {device.type} has{left}", code="out_of_memory", retry=True)


def free_mib(device: torch.device) -> float | None:
    """None where there is no way to know."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(free + cached) / 2**20
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable"))
    return None


def release(device: torch.device) -> None:
    """Give back what is cached."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


class Economy:
    """Ways to need less memory, the cheapest first; each is slower than the one before."""

    def __init__(self, pipe: Any, device: torch.device) -> None:
        self.notes: list[str] = []
        self._pipe, self._device = pipe, device
        self._ways: list[Callable[[], str | None]] = [self._slice_vae, self._slice_attention, self._offload]

    def more(self) -> bool:
        """Turn on the next way that this model has. False: there is none left."""
        while self._ways:
            if self._take(self._ways.pop(0)):
                return True
        return False

    def offload(self) -> bool:
        """Keep on the device only the part of the model that is at work, at once. False where that cannot be."""
        self._ways = [way for way in self._ways if way != self._offload]
        return self._take(self._offload)

    def _take(self, way: Callable[[], str | None]) -> bool:
        if (note := way()) is None:
            return False
        self.notes.append(note)
        release(self._device)
        return True

    def _slice_vae(self) -> str | None:
        vae = getattr(self._pipe, "vae", None)
        found = [name for name in ("enable_slicing", "enable_tiling") if hasattr(vae, name)]
        for name in found:
            with contextlib.suppress(NotImplementedError):
                getattr(vae, name)()
        return "short of memory: the picture is decoded in tiles" if found else None

    def _slice_attention(self) -> str | None:
        if getattr(self._pipe, "unet", None) is None or not hasattr(self._pipe.unet, "set_attention_slice"):
            return None  # transformers have attention that needs little
        self._pipe.unet.set_attention_slice("auto")
        return "short of memory: attention is computed in slices"

    def _offload(self) -> str | None:
        if self._device.type == "cpu":
            return None
        try:
            self._pipe.enable_model_cpu_offload(device=self._device)
        except (ImportError, ValueError, AttributeError):  # no accelerate, or a pipeline that cannot
            return None
        return "short of memory: parts of the model wait in the machine's memory until they are needed"
