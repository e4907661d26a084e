"""Idle time on macOS and Windows."""

from __future__ import annotations

import ctypes
import re
import subprocess

from outbid_node.courtesy.idle import Source

PROGRAM_AGE_S = 10.0
_HID_IDLE = re.compile(r'"HIDIdleTime" = (\d+)')


def sources(platform: str) -> list[Source]:
    if platform == "darwin":
        return [Source("ioreg", PROGRAM_AGE_S, from_ioreg)]
    return [Source("GetLastInputInfo", 1.0, from_windows)] if platform == "win32" else []


def from_ioreg() -> float | None:
    """May raise OSError or SubprocessError."""
    command = ["/usr/sbin/ioreg", "-c", "IOHIDSystem", "-d", "4", "-k", "HIDIdleTime"]
    return hid_idle_s(subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout)


def hid_idle_s(told: str) -> float | None:
    """
    >>> hid_idle_s('    |   "HIDIdleTime" = 2500000000')
    2.5
    """
    times = [int(nanoseconds) for nanoseconds in _HID_IDLE.findall(told)]
    return min(times) / 1e9 if times else None


class _LastInput(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint), ("time", ctypes.c_uint)]


def from_windows() -> float | None:
    """None in a service, which has no desktop. The tick count is of 32 bits and comes round after 49 days."""
    windll = getattr(ctypes, "windll")  # noqa: B009 - it exists on Windows only
    last = _LastInput(size=ctypes.sizeof(_LastInput))
    if not windll.user32.GetLastInputInfo(ctypes.byref(last)) or last.time == 0:
        return None
    ticks_ms: int = windll.kernel32.GetTickCount() & 0xFFFFFFFF
    return float((ticks_ms - last.time) % 2**32) / 1000
