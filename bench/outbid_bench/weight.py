"""`weight`: what a node that does nothing costs, and how long it takes to be of use."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from outbid import Mesh
from outbid_bench import weight_size
from outbid_bench.nodes import NOOP, Fleet, Node
from outbid_bench.options import Options
from outbid_bench.plots import Bars
from outbid_bench.processes import clean_environment
from outbid_bench.report import Aim, Section, Table
from outbid_bench.stats import ratios, spread
from outbid_bench.weight_rest import LEDGER, PARTS, ROUTER, WHOLE, Rest, watch
from outbid_contracts.errors import OutbidError, UnknownCapability
from outbid_contracts.events import Awarded, Finished

SETTLE_S = 8.0
"""From start to the first look: imports, discovery and the first heartbeats are over by then."""

NODES = 5
WATCH_S, QUICK_S = 600.0, 30.0
START_TIMEOUT_S = 30.0

ALONE, FIVE = "alone", f"{NODES} nodes known"

ABOUT = (
    "Fresh nodes in their default configuration (those at rest without the calibration of a first start), no "
    "runner, no job, nobody asking."
)

COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "import nats (nats-py)": ("-c", "import nats"),
    "import outbid": ("-c", "import outbid"),
    "outbid version": ("-c", "from outbid.cli import main; main()", "version"),
}
FLOOR = "python -c pass"


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
    options.say("weight: what is installed")
    sizes = await asyncio.to_thread(weight_size.table_and_plot)
    watch_s = options.few_or_many(QUICK_S, WATCH_S)
    return _section(await _at_rest(options, watch_s), starts, commands, sizes, watch_s)


async def _at_rest(options: Options, seconds: float) -> dict[str, Rest]:
    """The lone one beside the others, of whom it knows nothing: one watch of ten minutes has to do for both."""
    options.say(f"weight: a lone node and {NODES} that know each other at rest for {seconds:.0f} s")
    alone, five = Rest(), Rest()
    async with _nodes(options.folder / "alone", 1) as lone, _nodes(options.folder / "five", NODES) as nodes:
        await asyncio.sleep(SETTLE_S)
        await asyncio.gather(watch(lone, alone, seconds), watch(nodes, five, seconds))
    return {ALONE: alone, FIVE: five}


@asynccontextmanager
async def _nodes(folder: Path, count: int, *flags: str) -> AsyncIterator[list[Node]]:
    """Fresh nodes; of a mesh once they see each other, of a lone one at once."""
    async with Fleet(folder, flags) as fleet:
        if count == 1:
            fleet.spawn("n0")
        else:
            await fleet.grow(count)
        yield fleet.nodes


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


def _section(
    rests: dict[str, Rest],
    starts: Starts,
    commands: dict[str, list[float]],
    sizes: tuple[Table, Bars],
    watched_s: float,
) -> Section:
    section = Section("weight", "Weight: a node that does nothing", ABOUT)
    size_table, size_bars = sizes
    section.tables = [_rest_table(rests, watched_s), _start_table(starts), _command_table(commands), size_table]
    section.plots = [_bars(rests[FIVE]), size_bars]
    accepted = spread(starts.accepted)
    imported = spread(
        with_it - without for with_it, without in zip(commands["import outbid"], commands[FLOOR], strict=True)
    )
    section.aims = [
        *_rest_aims(rests[FIVE]),
        Aim("start to first accepted job", "< 2 s", accepted.text(" s"), accepted.median < 2),
        Aim("import outbid, beyond starting Python", "< 0.15 s", imported.text(" s"), imported.median < 0.15),
    ]
    return section


def _rest_aims(rest: Rest) -> list[Aim]:
    cpu = spread(rest.cpu_percent[WHOLE])
    together = spread(rest.python_mib)
    servers = spread([*rest.rss_mib[LEDGER], *rest.rss_mib[ROUTER]])
    whole = "processor at rest, a whole node of five (daemon, history, both servers)"
    return [
        Aim(whole, "< 1 % of a core", cpu.text(" %"), cpu.median < 1),
        Aim("resident, daemon and open DuckDB", "< 120 MiB", together.text(" MiB", 0), together.high < 120),
        Aim("resident, each nats-server", "< 30 MiB", servers.text(" MiB", 0), servers.high < 30),
    ]


def _rest_table(rests: dict[str, Rest], watched_s: float) -> Table:
    rows = [
        _rest_row(f"{part}, {name}", part, rest)
        for name, rest in rests.items()
        for part in (*PARTS, WHOLE)
        if part in rest.rss_mib
    ]
    columns = ("what", "resident", "of it private", "of a core", "wake-ups")
    notes = (
        f"The {NODES} nodes, and the lone one beside them, at once over {watched_s:.0f} s, from {SETTLE_S:.0f} s after "
        "the last start; each is one sample.",
        "Resident is what a process has mapped in memory (RSS), shared pages counted in each of those that share them; "
        "private is what would be free if it ended (USS). The aims are about the first.",
        "Wake-ups: voluntary context switches of all threads (/proc), that is how often one that waited went on. "
        "A server of Go has several for each message: the runtime's own threads wake each other. Of a ledger's some "
        "50 a second, and 0.15 % of a core, are nats-server's clock for streams in files, which ticks every 0.1 s "
        "whatever happens (docs/decisions/0020-cost-at-rest.md).",
        "The history is on, as it is by default, and its DuckDB file open, in a process of its own beside the daemon. "
        "The sum of both as resident counts what they share twice; the aim counts each mapped file once. Of "
        "the history's some 75 MiB resident 35 are code that DuckDB ran through to open the file; the system can take "
        "those back whenever it needs room.",
        "All nodes are on one machine: with its other load the same work takes more processor time, because the caches "
        "are cold at each wake-up.",
    )
    return Table("At rest", columns, rows, notes)


def _rest_row(name: str, part: str, rest: Rest) -> tuple[str, ...]:
    return (
        name,
        spread(rest.rss_mib[part]).text(" MiB", 1),
        spread(rest.private_mib[part]).text(" MiB", 1),
        spread(rest.cpu_percent[part]).text(" %", 2),
        spread(rest.wakes_per_s[part]).text("/s", 0),
    )


def _bars(rest: Rest) -> Bars:
    names = {part: part for part in PARTS} | {WHOLE: "Outbid, a whole node"}
    bars = [(name, spread(rest.cpu_percent[part])) for part, name in names.items() if part in rest.cpu_percent]
    return Bars("rest", f"Processor at rest, {FIVE}", "percent of a core", bars)


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
