"""`waiting`: a hundred thousand durable jobs that wait at one node, and a restart with all of them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

from outbid import Mesh
from outbid.jobs import Job
from outbid_bench.machine import filesystem
from outbid_bench.nodes import NOOP, NOOP_FLAGS, UP_TIMEOUT_S, Fleet, Node
from outbid_bench.options import Options
from outbid_bench.report import Aim, Section, Table

MANY, FEW = 100_000, 10_000
PART = 10_000
"""Jobs handed in by one call of the SDK, which makes batches of a thousand of them."""

RUN = 1000
"""Jobs that are let go in the end."""

ONE_SLOT = (*NOOP_FLAGS, "--set", "test.slots=1")
ECHO = "test.echo"


@dataclass(slots=True)
class Found:
    jobs: int
    disk: str
    submits_per_s: list[float] = field(default_factory=list)
    daemon_mib: dict[str, float] = field(default_factory=dict)
    ledger_mib: dict[str, float] = field(default_factory=dict)
    recovered_s: float = 0.0
    blocked_ms: dict[str, float] = field(default_factory=dict)
    runs_per_s: float = 0.0

    def bytes_per_job(self, mib: Mapping[str, float]) -> float:
        return (mib["full"] - mib["empty"]) * 2**20 / self.jobs


async def run(options: Options) -> Section:
    found = Found(options.few_or_many(FEW, MANY), filesystem(options.folder))
    async with Fleet(options.folder / "waiting", ONE_SLOT) as fleet:
        node = await fleet.add("n0")
        async with Mesh(state=node.state) as mesh:
            busy = await mesh.submit(ECHO, {"text": "busy", "delay_s": 3600})
            _weigh(node, found, "empty")
            last = await _submit(mesh, found, options)
            _weigh(node, found, "full")
        found.blocked_ms["submitting"] = _longest_ms(node)
        node = await _restart(fleet, node, found)
        async with Mesh(state=node.state) as mesh:
            found.runs_per_s = await _let_go(mesh, busy, last)
        found.blocked_ms["restarting"] = _longest_ms(node)
    return _section(found)


async def _submit(mesh: Mesh, found: Found, options: Options) -> Job:
    """All of them, a part after the other; returns the one that is RUN-th in the queue."""
    marked: list[Job] = []
    for done in range(0, found.jobs, PART):
        options.say(f"waiting: {done} jobs wait")
        begun = time.perf_counter()
        jobs = await mesh.submit_many([{"capability": NOOP}] * PART)
        found.submits_per_s.append(PART / (time.perf_counter() - begun))
        marked = marked or [jobs[RUN - 1]]
    return marked[0]


async def _restart(fleet: Fleet, node: Node, found: Found) -> Node:
    """After SIGKILL. From the start of the process until all waiting jobs are in the queue again."""
    node.process.kill()
    await asyncio.to_thread(node.process.wait)
    again = fleet.spawn(node.name)
    deadline = again.started + UP_TIMEOUT_S
    while not again.lines("jobs_recovered"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the jobs of {node.name} were not recovered")
        await asyncio.sleep(0.02)
    found.recovered_s = time.monotonic() - again.started
    await again.until_up()
    return again


async def _let_go(mesh: Mesh, busy: Job, last: Job) -> float:
    await mesh.cancel(busy.id)
    begun = time.perf_counter()
    await mesh.attach(last.id).result(UP_TIMEOUT_S)
    return RUN / (time.perf_counter() - begun)


def _weigh(node: Node, found: Found, when: str) -> None:
    found.daemon_mib[when] = psutil.Process(node.process.pid).memory_info().rss / 2**20
    found.ledger_mib[when] = node.ledger().memory_info().rss / 2**20


def _longest_ms(node: Node) -> float:
    """The longest time the daemon's event loop was blocked, of those over 50 ms that it logs."""
    lines = [re.search(r"(\d+) ms", str(line["message"])) for line in node.lines("loop_blocked")]
    return max((float(line[1]) for line in lines if line), default=0.0)


# -- what is said about it ---------------------------------------------------------------------------------------------


def _section(found: Found) -> Section:
    about = f"One node whose only slot is taken; the jobs wait on its disk ({found.disk}) and in its queue."
    section = Section("waiting", f"A queue of {found.jobs:,} waiting jobs".replace(",", " "), about)
    rates = found.submits_per_s
    rows = [
        ("submits per second, the first 10 000", f"{rates[0]:,.0f}"),
        ("submits per second, the last 10 000", f"{rates[-1]:,.0f}"),
        ("memory of the daemon per waiting job", f"{found.bytes_per_job(found.daemon_mib):,.0f} bytes"),
        ("memory of its ledger per waiting job", f"{found.bytes_per_job(found.ledger_mib):,.0f} bytes"),
        ("restart after SIGKILL until all wait again", f"{found.recovered_s:.1f} s"),
        ("jobs per second, then, through one slot", f"{found.runs_per_s:,.0f}"),
        *((f"longest block of the event loop, {when}", _block(ms)) for when, ms in found.blocked_ms.items()),
    ]
    notes = ("Each submit is acknowledged once it is synced; 1000 jobs in one request.",)
    section.tables = [Table("Jobs that do nothing, waiting", ("what", "figure"), rows, notes)]
    section.aims = [Aim("restart with all waiting", "< 10 s", f"{found.recovered_s:.1f} s", found.recovered_s < 10)]
    return section


def _block(ms: float) -> str:
    return f"{ms:.0f} ms" if ms else "under 50 ms"
