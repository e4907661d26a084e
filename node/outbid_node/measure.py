"""What this machine can do: its cores, and a first measure of its memory bandwidth."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import psutil

from outbid_contracts.capability import Machine
from outbid_contracts.messages import Resources
from outbid_node.estimating.cards import bandwidth_gib_s

CARDS_S = 1.0

_PROBE = """
import time
a = bytearray(1 << 25); b = bytearray(1 << 25); best = 1e9
for _ in range(6):
    t = time.perf_counter(); b[:] = a; best = min(best, time.perf_counter() - t)
print(2 * len(a) / best / 2**30)
"""
"""Copies 32 MiB, larger than most caches; reading and writing both count. In a process of its own: the copy holds the
GIL.
"""


async def measure_machine(cpu_share: float, resources: Callable[[float], Awaitable[Resources]]) -> Machine:
    """About 0.1 s. A machine that cannot be measured is taken for a slow one (5 GiB/s). `resources` is given the
    seconds that it may take to find the graphics cards.
    """
    bandwidth, found = await asyncio.gather(_bandwidth(), resources(CARDS_S))
    return Machine(
        cpu_count=psutil.cpu_count(logical=False) or 1,
        memory_bandwidth_gib_s=bandwidth,
        gpu_bandwidth_gib_s=bandwidth_gib_s(found.gpus),
        cpu_share=cpu_share,
    )


async def _bandwidth() -> float:
    try:
        probe = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", "-c", _PROBE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(10):
            out, _ = await probe.communicate()
        return max(0.1, float(out))
    except (OSError, ValueError, TimeoutError):
        return 5.0
