"""What the processes of nodes at rest take: memory, part of a core, wake-ups."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from outbid_bench.nodes import Node

DAEMON, HISTORY, LEDGER, ROUTER, WHOLE = "daemon", "its history (DuckDB)", "ledger", "router", "a whole node"
PARTS = (DAEMON, HISTORY, LEDGER, ROUTER)

Tree = dict[str, psutil.Process]
"""The processes of one node by what they are."""


@dataclass(slots=True)
class Rest:
    """Per part a number for each node that was watched."""

    rss_mib: dict[str, list[float]] = field(default_factory=dict)
    private_mib: dict[str, list[float]] = field(default_factory=dict)
    cpu_percent: dict[str, list[float]] = field(default_factory=dict)
    wakes_per_s: dict[str, list[float]] = field(default_factory=dict)
    python_mib: list[float] = field(default_factory=list)
    """Daemon and history together, with the pages of a file that both have mapped counted once."""


async def watch(nodes: Sequence[Node], rest: Rest, seconds: float) -> None:
    """All of them at once; nobody asks them anything meanwhile."""
    trees = [_tree(node) for node in nodes]
    before = [{part: (_cpu_s(process), _wakes(process)) for part, process in tree.items()} for tree in trees]
    begun = time.monotonic()
    await asyncio.sleep(seconds)
    took = time.monotonic() - begun
    for tree, was in zip(trees, before, strict=True):
        cpu = {part: (_cpu_s(process) - was[part][0]) / took * 100 for part, process in tree.items()}
        wakes = {part: _more(_wakes(process), was[part][1]) / took for part, process in tree.items()}
        rss = {part: process.memory_info().rss / 2**20 for part, process in tree.items()}
        private = {part: _private(process) / 2**20 for part, process in tree.items()}
        for values, found in (
            (rest.cpu_percent, cpu),
            (rest.wakes_per_s, wakes),
            (rest.rss_mib, rss),
            (rest.private_mib, private),
        ):
            for part, value in (found | {WHOLE: sum(found.values())}).items():
                values.setdefault(part, []).append(value)
        rest.python_mib.append(_together(tree[part] for part in (DAEMON, HISTORY) if part in tree) / 2**20)


def _tree(node: Node) -> Tree:
    """A node at rest has no runner: its other children are its servers and the process that keeps the history."""
    daemon = psutil.Process(node.process.pid)
    return {DAEMON: daemon} | {_part(child): child for child in daemon.children(recursive=True)}


def _part(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    if "outbid_node.history" in command:
        return HISTORY
    if "nats-server" not in process.name():
        raise RuntimeError(f"a node at rest runs {command}")
    return LEDGER if "ledger.conf" in command else ROUTER


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _wakes(process: psutil.Process) -> dict[str, int]:
    """Voluntary context switches of each thread so far: so often it waited, and was woken. Empty but on Linux."""
    return {file.parent.name: _of_thread(file) for file in Path(f"/proc/{process.pid}/task").glob("*/status")}


def _of_thread(status: Path) -> int:
    with suppress(OSError):
        lines = [line for line in status.read_text().splitlines() if line.startswith("voluntary_ctxt_switches")]
        return sum(int(line.rpartition(":")[2]) for line in lines)
    return 0


def _more(now: dict[str, int], before: dict[str, int]) -> int:
    return sum(count - before.get(thread, 0) for thread, count in now.items())


def _private(process: psutil.Process) -> int:
    """Bytes that would be free if it ended."""
    size: int = getattr(process.memory_full_info(), "uss", 0)
    return size


def _together(processes: Iterable[psutil.Process]) -> int:
    """Resident bytes of all of them, but of each file the most that one of them has mapped, not the sum. 0 where the
    system does not tell.
    """
    own, files = 0, dict[str, int]()
    for process in processes:
        for mapping in getattr(process, "memory_maps", list)():
            anonymous = getattr(mapping, "anonymous", mapping.rss)
            own += anonymous
            files[mapping.path] = max(files.get(mapping.path, 0), mapping.rss - anonymous)
    return own + sum(files.values())
