"""What the processes of a mesh cost: processor time by part while jobs run, memory of each node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import psutil

from outbid_bench.nodes import Node

DAEMON, LEDGER, ROUTER, HISTORY, RUNNER = "daemon", "ledger", "router", "history", "runner"
KINDS = (DAEMON, LEDGER, ROUTER, HISTORY, RUNNER)

OWNER, OTHERS, CALLER = "owner", "others", "caller"
"""Whose processes: the node that is asked, the other nodes, the measuring process itself."""

Part = tuple[str, str]
"""Whose, and what kind."""


def processes(node: Node) -> dict[str, psutil.Process]:
    """All that belong to a node, by kind."""
    found = {DAEMON: psutil.Process(node.process.pid)}
    for child in found[DAEMON].children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found[_kind(child.cmdline())] = child
    return found


def _kind(words: Sequence[str]) -> str:
    text = " ".join(words)
    if "outbid_node.history.process" in text:
        return HISTORY
    if "runner_kit" in text:
        return RUNNER
    return LEDGER if "ledger" in text else ROUTER


class Parts:
    """The processes of a mesh whose first node is the one asked."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = [processes(node) for node in nodes]

    def cpu_s(self) -> dict[Part, float]:
        """Processor seconds so far, user and system; the clock ticks at 10 ms."""
        found: dict[Part, float] = {(CALLER, ""): _cpu_s(psutil.Process())}
        for number, node in enumerate(self.nodes):
            for kind, process in node.items():
                part = (OTHERS if number else OWNER), kind
                found[part] = found.get(part, 0.0) + _cpu_s(process)
        return found

    def memory_mib(self, kind: str) -> list[tuple[float, float]]:
        """Of each node that has such a process: resident, and of it private (what would be free if it ended)."""
        return [_memory_mib(node[kind]) for node in self.nodes if kind in node]

    def node_mib(self) -> list[float]:
        """Private memory of each node without its runner."""
        return [sum(_memory_mib(process)[1] for kind, process in node.items() if kind != RUNNER) for node in self.nodes]


def spent_s(before: Mapping[Part, float], after: Mapping[Part, float]) -> dict[Part, float]:
    """Of the parts that were there all the while."""
    return {part: after[part] - seconds for part, seconds in before.items() if part in after}


def _cpu_s(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _memory_mib(process: psutil.Process) -> tuple[float, float]:
    info = process.memory_full_info()
    return info.rss / 2**20, getattr(info, "uss", 0) / 2**20
