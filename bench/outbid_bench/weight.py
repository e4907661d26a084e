"""`weight`: what a node that does nothing costs, and how long it takes to be of use."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from outbid import Mesh
from outbid_bench.nodes import NOOP, Fleet, Node
from outbid_bench.options import Options
from outbid_bench.processes import clean_environment
from outbid_bench.report import Aim, Section, Table
from outbid_bench.stats import ratios, spread
from outbid_contracts.errors import OutbidError, UnknownCapability
from outbid_contracts.events import Awarded, Finished

SETTLE_S = 5.0
"""From start to the first look: imports, discovery and the first heartbeats are over by then."""

WATCH_S = 20.0
START_TIMEOUT_S = 30.0

DAEMON, SERVERS = "daemon", "its nats-servers"

COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "import nats (nats-py)": ("-c", "import nats"),
    "import outbid": ("-c", "import outbid"),
    "outbid version": ("-c", "from outbid.cli import main; main()", "version"),
}
FLOOR = "python -c pass"


@dataclass(slots=True)
class Rest:
    """Of a node at rest, per part and round: memory, part of a core used, and context switches."""

    rss_mib: dict[str, list[float]] = field(default_factory=dict)
    private_mib: dict[str, list[float]] = field(default_factory=dict)
    cpu_percent: dict[str, list[float]] = field(default_factory=dict)
    switches_per_s: dict[str, list[float]] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Starts:
    """Seconds since the process was started, per round."""

    answering: list[float] = field(default_factory=list)
    accepted: list[float] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)


async def run(options: Options) -> Section:
    options.say("weight: commands")
    commands = _commands(options.rounds * 2)
    starts = Starts()
    for n in range(options.rounds):
        options.say(f"weight: start {n + 1} of {options.rounds}")
        async with _nodes(options.folder / f"start{n}", 1, "--set", "test.enabled=true") as nodes:
            await _first_job(nodes[0], starts)
    rests: dict[str, Rest] = {}
    for n in range(options.few_or_many(1, min(3, options.rounds))):
        for size, name in ((1, "alone"), (2, "in a mesh of two")):
            options.say(f"weight: a node {name} at rest, {n + 1}")
            async with _nodes(options.folder / f"rest{n}{size}", size) as nodes:
                await asyncio.sleep(SETTLE_S)
                await _watch(nodes[0], rests.setdefault(name, Rest()), options.few_or_many(5.0, WATCH_S))
    return _section(rests, starts, commands)


@asynccontextmanager
async def _nodes(folder: Path, count: int, *flags: str) -> AsyncIterator[list[Node]]:
    """Fresh nodes; of a mesh once they see each other, of a lone one at once."""
    async with Fleet(folder, flags) as fleet:
        if count == 1:
            fleet.spawn("n0")
        else:
            await fleet.grow(count)
        yield fleet.nodes


# -- at rest -----------------------------------------------------------------------------------------------------------


async def _watch(node: Node, rest: Rest, seconds: float) -> None:
    parts = {DAEMON: [psutil.Process(node.process.pid)], SERVERS: node.servers()}
    before = {name: (_cpu_s(part), _switches(part)) for name, part in parts.items()}
    begun = time.monotonic()
    await asyncio.sleep(seconds)
    took = time.monotonic() - begun
    for name, part in parts.items():
        cpu_s, switches = before[name]
        _note(rest.cpu_percent, name, (_cpu_s(part) - cpu_s) / took * 100)
        _note(rest.switches_per_s, name, (_switches(part) - switches) / took)
        _note(rest.rss_mib, name, sum(process.memory_info().rss for process in part) / 2**20)
        _note(rest.private_mib, name, sum(_private(process) for process in part) / 2**20)
        rest.count[name] = len(part)


def _note(values: dict[str, list[float]], name: str, value: float) -> None:
    values.setdefault(name, []).append(value)


def _private(process: psutil.Process) -> int:
    """Bytes that would be free if it ended."""
    size: int = getattr(process.memory_full_info(), "uss", 0)
    return size


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(found.user + found.system for found in times)


def _switches(processes: Sequence[psutil.Process]) -> float:
    """Context switches of all threads so far; 0 where only the main thread's can be read."""
    return sum(_of_thread(file) for process in processes for file in Path(f"/proc/{process.pid}/task").glob("*/status"))


def _of_thread(status: Path) -> int:
    with suppress(OSError):
        lines = [line for line in status.read_text().splitlines() if "ctxt_switches" in line]
        return sum(int(line.rpartition(":")[2]) for line in lines)
    return 0


# -- starting ----------------------------------------------------------------------------------------------------------


async def _first_job(node: Node, starts: Starts) -> None:
    """A client that waits for the node, and asks for a job until it takes it."""
    mesh = await _connect(node)
    try:
        starts.answering.append(time.monotonic() - node.started)
        for _ in range(200):
            with suppress(UnknownCapability):  # its subscriptions may not have reached the server yet
                await _job(mesh, node, starts)
                return
            await asyncio.sleep(0.005)
        raise RuntimeError(f"node {node.name} takes no job")
    finally:
        await mesh.__aexit__(None, None, None)


async def _job(mesh: Mesh, node: Node, starts: Starts) -> None:
    async for event in mesh.stream(NOOP, {}, idle_timeout_s=START_TIMEOUT_S):
        if isinstance(event, Awarded):
            starts.accepted.append(time.monotonic() - node.started)
        if isinstance(event, Finished):
            starts.finished.append(time.monotonic() - node.started)


async def _connect(node: Node) -> Mesh:
    await node.until_up()
    for _ in range(200):
        with suppress(OutbidError):
            return await Mesh(state=node.state).__aenter__()
        await asyncio.sleep(0.005)
    raise RuntimeError(f"node {node.name} cannot be reached")


def _commands(rounds: int) -> dict[str, list[float]]:
    """Seconds that each command takes, in turns."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for n in range(rounds + 1):
        for name, arguments in COMMANDS.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=clean_environment())
            if n:  # the first one reads files from disk
                found[name].append(time.perf_counter() - begun)
    return found


# -- what is said about it ---------------------------------------------------------------------------------------------


def _section(rests: dict[str, Rest], starts: Starts, commands: dict[str, list[float]]) -> Section:
    section = Section("weight", "Weight: a node that does nothing", "Fresh nodes, no runner, no job, nobody asking.")
    section.tables = [_rest_table(rests), _start_table(starts), _command_table(commands)]
    memory = spread(value for rest in rests.values() for value in rest.rss_mib[DAEMON])
    accepted = spread(starts.accepted)
    imported = spread(
        with_it - without for with_it, without in zip(commands["import outbid"], commands[FLOOR], strict=True)
    )
    section.aims = [
        Aim("resident memory of the daemon", "< 80 MiB", memory.text(" MiB", 1), memory.high < 80),
        Aim("start to first accepted job", "< 2 s", accepted.text(" s"), accepted.median < 2),
        Aim("import outbid, beyond starting Python", "< 0.15 s", imported.text(" s"), imported.median < 0.15),
    ]
    return section


def _rest_table(rests: dict[str, Rest]) -> Table:
    rows = [_rest_row(f"{part}, {name}", part, rest) for name, rest in rests.items() for part in (DAEMON, SERVERS)]
    columns = ("what", "processes", "resident", "of it private", "of a core", "context switches")
    notes = (f"Seen {SETTLE_S:.0f} s after the start, over {WATCH_S:.0f} s (5 s with --quick).",)
    return Table("At rest", columns, rows, notes)


def _rest_row(name: str, part: str, rest: Rest) -> tuple[str, ...]:
    def cell(values: dict[str, list[float]], unit: str, digits: int) -> str:
        return spread(values[part]).text(unit, digits)

    return (
        name,
        str(rest.count[part]),
        cell(rest.rss_mib, " MiB", 1),
        cell(rest.private_mib, " MiB", 1),
        cell(rest.cpu_percent, " %", 2),
        cell(rest.switches_per_s, "/s", 0),
    )


def _start_table(starts: Starts) -> Table:
    labels: dict[str, Callable[[Starts], list[float]]] = {
        "the node answers": lambda found: found.answering,
        "a first job is accepted (awarded)": lambda found: found.accepted,
        "its result is there (the runner was started for it)": lambda found: found.finished,
    }
    rows = [(label, spread(read(starts)).text(" s")) for label, read in labels.items()]
    return Table("From the start of the process until", ("what", "time"), rows)


def _command_table(commands: dict[str, list[float]]) -> Table:
    rows = [
        (name, spread(times).scaled(1000).text(" ms", 0), ratios(times, commands[FLOOR]).text("x", 1))
        for name, times in commands.items()
    ]
    return Table("A whole Python process", ("what", "time", f"of {FLOOR}"), rows)
