"""Apple silicon: the chip's name; its memory is the machine's. (Load and watts would take root.)"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable

from outbid_contracts.messages import Gpu

Sysctl = Callable[[str], str]


def is_apple_silicon() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"


def sysctl(name: str) -> str:
    """May raise OSError or SubprocessError."""
    return subprocess.run(
        ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=True, timeout=5
    ).stdout.strip()


def read(ask: Sysctl = sysctl) -> list[Gpu]:
    memory_mib = int(ask("hw.memsize")) >> 20
    return [Gpu(name=ask("machdep.cpu.brand_string"), vendor="apple", memory_mib=memory_mib, unified=True)]
