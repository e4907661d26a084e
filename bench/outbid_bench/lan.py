"""`lan`: how soon a machine that comes is seen by all the others, and how soon one that dies is known as gone.

Five hosts in network namespaces (tests/lan.py): each has its own network card, multicast is real. Linux, root.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from outbid_bench.options import Options
from outbid_bench.report import Aim, Section, Table
from outbid_bench.stats import percentile

if TYPE_CHECKING:
    from tests.lan import Lan, LanNode

ROOT = Path(__file__).resolve().parents[2]
HOSTS = 5
QUIET_S = 1.2
"""Before each start: an announcement within a second of another's is held back (RFC 6762, 6)."""
TIMEOUT_S = 30.0
POWER_CUT_EVERY = 3
"""Of so many runs one; the daemon is killed in the others, which take half as long."""


@dataclass(slots=True)
class Times:
    """Seconds, one number per run: until the last of the other hosts knew."""

    visible: list[float] = field(default_factory=list)
    sees_all: list[float] = field(default_factory=list)
    killed: list[float] = field(default_factory=list)
    power_cut: list[float] = field(default_factory=list)


async def run(options: Options) -> Section:
    section = Section(
        "lan",
        "A LAN of five hosts: who comes, who goes",
        "Hosts are network namespaces on one switch, found by multicast DNS. Four run; the fifth is started on a new "
        "state folder, then its daemon is killed or its power cut. It counts when the last of the four logged it.",
    )
    sys.path.insert(0, str(ROOT))  # the harness is a part of the tests
    from tests.lan import lan, unavailable

    if why := unavailable():
        section.tables = [Table("Not measured", ("why",), [(why,)])]
        return section
    with lan(options.folder / "lan") as net:
        times = await _measure(net, options)
    section.tables, section.aims = [_table(times)], _aims(times)
    return section


async def _measure(net: Lan, options: Options) -> Times:
    times = Times()
    others = [net.host(f"h{n}").node("lan") for n in range(HOSTS - 1)]
    for node in others:
        node.spawn()
    for node in others:
        await _until(lambda node=node: len(_names(node)) >= HOSTS - 1)  # type: ignore[misc]
    runs = options.few_or_many(6, 4 * options.rounds)
    for number in range(runs):
        if number % 5 == 0:
            options.say(f"lan: run {number + 1} of {runs}")
        await _one_run(net, others, number, times)
    return times


async def _one_run(net: Lan, others: Sequence[LanNode], number: int, times: Times) -> None:
    await asyncio.sleep(QUIET_S)
    host = net.host(f"new{number}", f"10.77.0.{number + 10}/24", f"fd77::{number + 10:x}/64")
    node = host.node("lan")
    began = time.time()
    node.spawn()
    times.visible.append(await _last(others, "node_appeared", host.name, began))
    names = [other.name for other in others]
    times.sees_all.append(max([await _last([node], "node_appeared", name, began) for name in names]))
    await asyncio.sleep(random.uniform(0.5, 1.5))  # at any point between two heartbeats
    began = time.time()
    if number % POWER_CUT_EVERY == 0:
        host.power_cut()
        times.power_cut.append(await _last(others, "node_gone", host.name, began))
    else:
        node.kill()
        times.killed.append(await _last(others, "node_gone", host.name, began))
    host.close()
    net.hosts.remove(host)


async def _last(nodes: Sequence[LanNode], action: str, name: str, began: float) -> float:
    """Seconds until the last of them logged it; raises TimeoutError."""
    await _until(lambda: all(_logged(node, action, name) for node in nodes))
    return max(_logged(node, action, name)[0] for node in nodes) - began


def _logged(node: LanNode, action: str, name: str) -> list[float]:
    lines = [line for line in node.lines(action) if line["message"].startswith(f"node {name} ")]
    return [datetime.fromisoformat(line["time"]).timestamp() for line in lines]


def _names(node: LanNode) -> set[str]:
    return {line["message"] for line in node.lines("node_appeared")}


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not true():  # noqa: ASYNC110 - the log files of other processes
            await asyncio.sleep(0.02)


def _table(times: Times) -> Table:
    rows = [
        _row("started → visible on all four others", times.visible),
        _row("started → sees all four others", times.sees_all),
        _row("daemon killed (SIGKILL) → gone for all", times.killed),
        _row("power cut → gone for all", times.power_cut),
    ]
    notes = (
        "`started` is the launch of the process, so the start of Python and of both nats-servers is in it.",
        "A killed daemon: its router, which ends with it, says goodbye to the others, who ask whether it is there and "
        "are told that nobody listens.",
        "A power cut leaves nothing but silence: three heartbeats of one second, 0.2 s for the network, the next look.",
    )
    return Table("Seconds until the last one knew", ("what", "runs", "p50", "p99", "lowest–highest"), rows, notes)


def _row(what: str, seconds: Sequence[float]) -> tuple[str, ...]:
    if not seconds:
        return what, "0", "-", "-", "-"
    p50, p99 = percentile(seconds, 0.5), percentile(seconds, 0.99)
    return what, str(len(seconds)), f"{p50:.2f} s", f"{p99:.2f} s", f"{min(seconds):.2f}–{max(seconds):.2f} s"


def _aims(times: Times) -> list[Aim]:
    aims = [
        _aim("start to visible on all others, p50", times.visible, 0.5, 1.5),
        _aim("start to visible on all others, p99", times.visible, 0.99, 4.0),
        _aim("killed daemon known as gone by all, p50", times.killed, 0.5, 0.3),
        _aim("killed daemon known as gone by all, p99", times.killed, 0.99, 0.3),
        _aim("power cut known as gone by all, p99", times.power_cut, 0.99, 3.5),
    ]
    return [aim for aim in aims if aim is not None]


def _aim(what: str, seconds: Sequence[float], q: float, below_s: float) -> Aim | None:
    if not seconds:
        return None
    found = percentile(seconds, q)
    return Aim(what, f"< {below_s:.1f} s", f"{found:.2f} s", found < below_s)
