"""`history`: what writing everything down costs, and how long it takes to look things up among ten million rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from outbid import Mesh
from outbid_bench.dispatch import IN_FLIGHT, jobs_per_s
from outbid_bench.history_rows import fill
from outbid_bench.nodes import NOOP, NOOP_FLAGS, Fleet, Node, warm_noop
from outbid_bench.options import Options
from outbid_bench.report import Aim, Section, Table
from outbid_bench.stats import Spread, ratios, spread
from outbid_contracts.ids import JobId, NodeId
from outbid_node.estimating.recall import recall_promises, recall_speeds
from outbid_node.estimating.trust import Trust
from outbid_node.history.kept import KeptHistory
from outbid_node.history.recalled import Recall
from outbid_node.history.reports import UNITS, USAGE

ON, OFF = "with a history", "without"

ROWS = 10_000_000
MONTH_MS = 30 * 86_400_000
CHATS, TOKENS = 8, 24
CHAT_TURNS = 2
"""Of chats in each round."""

TURNS = 5
"""Of jobs that do nothing, in each round; short ones, so that what else the machine does hits both alike."""

LIMIT_MS = 100.0
LIMIT_MIB = 1024.0
LEAST_SHARE = 0.98

Rate = Callable[[], Awaitable[float]]


@dataclass(slots=True)
class Costs:
    """One number per turn and node: tokens and jobs a second, CPU seconds of the daemon and its history for each of
    them, CPU seconds of the engine for each token; and those of the process that keeps the history for each second of
    the measurement.
    """

    tokens: dict[str, list[float]] = field(default_factory=lambda: {ON: [], OFF: []})
    jobs: dict[str, list[float]] = field(default_factory=lambda: {ON: [], OFF: []})
    token_cpu_s: dict[str, list[float]] = field(default_factory=lambda: {ON: [], OFF: []})
    job_cpu_s: dict[str, list[float]] = field(default_factory=lambda: {ON: [], OFF: []})
    engine_cpu_s: list[float] = field(default_factory=list)
    share_chatting: list[float] = field(default_factory=list)
    share_flooded: list[float] = field(default_factory=list)
    share_idle: float = 0.0
    rss_mib: float = 0.0
    own_mib: float = 0.0


@dataclass(slots=True)
class Look:
    """One way to look something up: milliseconds at the first time and later."""

    what: str
    first_ms: float
    later_ms: Spread
    found: int


@dataclass(slots=True)
class Size:
    rows: int
    mib: float
    looks: list[Look]


async def run(options: Options) -> Section:
    costs, folder = Costs(), options.folder / "rows"
    folder.mkdir()
    async with AsyncExitStack() as stack:
        options.say("history: starting a node with and one without")
        nodes = {ON: await _node(stack, options, "on", "true"), OFF: await _node(stack, options, "off", "false")}
        meshes = {name: await stack.enter_async_context(Mesh(state=node.state)) for name, node in nodes.items()}
        for name, mesh in meshes.items():
            await warm_noop(nodes[name])
            await _tokens_per_s(mesh, -1)
        for round in range(options.rounds):
            options.say(f"history: round {round + 1} of {options.rounds}")
            await _round(costs, nodes, meshes, round, options)
        options.say(f"history: making {options.few_or_many(ROWS // 10, ROWS):,} rows")
        making = asyncio.create_task(asyncio.to_thread(fill, folder, options.few_or_many(ROWS // 10, ROWS)))
        await _rest(costs, _keeper(nodes[ON]), options.few_or_many(10.0, 20.0))
    rows, size = await making
    return _section(costs, Size(rows, size / 2**20, await _looks(folder, options)))


# -- what it costs -----------------------------------------------------------------------------------------------------


async def _round(costs: Costs, nodes: dict[str, Node], meshes: dict[str, Mesh], round: int, options: Options) -> None:
    for turn in range(options.few_or_many(1, CHAT_TURNS)):
        for name, mesh in _in_turn(meshes, round + turn):
            spent = await _spent(nodes[name], _tokens_per_s(mesh, round * 10 + turn))
            costs.tokens[name].append(spent.rate)
            costs.token_cpu_s[name].append(spent.ours_s)
            costs.engine_cpu_s.append(spent.engine_s)
            costs.share_chatting += [spent.keeper_share] if name == ON else []
    for turn in range(TURNS):
        for name, mesh in _in_turn(meshes, round + turn):
            spent = await _spent(nodes[name], jobs_per_s(_noop(mesh), options.few_or_many(0.5, 0.7)))
            costs.jobs[name].append(spent.rate)
            costs.job_cpu_s[name].append(spent.ours_s)
            costs.share_flooded += [spent.keeper_share] if name == ON else []


async def _rest(costs: Costs, keeper: psutil.Process, seconds: float) -> None:
    """Rows are made meanwhile: what the keeper takes is seen from its own processor time."""
    await asyncio.sleep(3)  # what is still being written is not rest
    costs.share_idle = await _share(keeper, seconds)
    memory = keeper.memory_full_info()
    costs.rss_mib, costs.own_mib = memory.rss / 2**20, memory.uss / 2**20


def _in_turn(meshes: dict[str, Mesh], number: int) -> list[tuple[str, Mesh]]:
    """Each goes first as often as the other."""
    pairs = list(meshes.items())
    return pairs if number % 2 else pairs[::-1]


async def _node(stack: AsyncExitStack, options: Options, name: str, enabled: str) -> Node:
    flags = [*NOOP_FLAGS, "--set", f"history.enabled={enabled}", "--set", f"llm.slots={CHATS}"]
    flags += ["--set", f"llm.threads={options.threads}"] if options.threads else []
    fleet = await stack.enter_async_context(Fleet(options.folder / name, flags))
    return await fleet.add("n")


def _keeper(node: Node) -> psutil.Process:
    children = psutil.Process(node.process.pid).children()
    return next(child for child in children if "outbid_node.history.process" in child.cmdline())


@dataclass(frozen=True, slots=True)
class Spent:
    """What a measurement found a second, the CPU seconds of the daemon with its history and of the runners for each of
    those, and the part of a core that the history's process took.
    """

    rate: float
    ours_s: float
    engine_s: float
    keeper_share: float


async def _spent(node: Node, act: Awaitable[float]) -> Spent:
    daemon = psutil.Process(node.process.pid)
    children = {child: " ".join(child.cmdline()) for child in daemon.children()}
    keepers = [child for child, words in children.items() if "outbid_node.history.process" in words]
    engines = [child for child, words in children.items() if "runner_kit" in words]
    groups = ([daemon, *keepers], engines, keepers)
    begun, before = time.perf_counter(), [sum(map(_cpu_s, group)) for group in groups]
    rate = await act
    seconds = time.perf_counter() - begun
    ours_s, engine_s, kept_s = (sum(map(_cpu_s, group)) - was for group, was in zip(groups, before, strict=True))
    return Spent(rate, ours_s / (rate * seconds), engine_s / (rate * seconds), kept_s / seconds)


async def _share(process: psutil.Process, seconds: float) -> float:
    """The part of a core that it takes."""
    before = _cpu_s(process)
    await asyncio.sleep(seconds)
    return (_cpu_s(process) - before) / seconds


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def _tokens_per_s(mesh: Mesh, number: int) -> float:
    """Of several chats at once."""

    async def chat(n: int) -> int:
        stream = mesh.chat(f"Write a long story, number {number * CHATS + n}.", max_tokens=TOKENS, temperature=0)
        async for _ in stream:
            pass
        return (await stream.reply()).usage.completion_tokens

    begun = time.perf_counter()
    tokens = sum(await asyncio.gather(*(chat(n) for n in range(CHATS))))
    return tokens / (time.perf_counter() - begun)


def _noop(mesh: Mesh) -> Callable[[], Awaitable[object]]:
    return lambda: mesh.run(NOOP, {})


# -- how long it takes to look things up -------------------------------------------------------------------------------


async def _looks(folder: Path, options: Options) -> list[Look]:
    history = KeptHistory(folder)
    await history.start()
    try:
        [[middle, newest_ms]] = await history.read("SELECT quantile_disc(job, 0.6), max(ended_ms) FROM jobs")
        recall, when = Recall(NodeId("node0001"), history), {"from_ms": newest_ms - MONTH_MS, "to_ms": newest_ms}

        async def why() -> int:
            record = await recall.job(JobId(middle))
            assert record is not None
            return sum(len(sheet.bids) + len(sheet.declines) for sheet in record.sheets)

        async def report() -> int:
            found = [await history.read(sql.format(**when)) for sql in (USAGE, UNITS)]
            return sum(map(len, found))

        async def speeds() -> int:
            found = await recall_speeds(history, 1.0)
            return sum(len(runs) for recalled in found.values() for runs in recalled.runs.values())

        async def promises() -> int:
            trust = Trust()
            await recall_promises(history, trust)
            return 0

        looks: dict[str, Callable[[], Awaitable[int]]] = {
            "`why` of one job: its attempts, auctions and bids": why,
            "report of a month": report,
            "estimators: the newest runs of each capability and model": speeds,
            "trust: the newest promises of each node": promises,
        }
        return [await _look(what, act, options.rounds) for what, act in looks.items()]
    finally:
        await history.close()


async def _look(what: str, act: Callable[[], Awaitable[int]], rounds: int) -> Look:
    times: list[float] = []
    found = 0
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        found = await act()
        times.append((time.perf_counter() - begun) * 1000)
    return Look(what, times[0], spread(times[1:]), found)


# -- what is said about it ---------------------------------------------------------------------------------------------


def _section(costs: Costs, size: Size) -> Section:
    section = Section(
        "history",
        "History: what writing everything down costs",
        "Two nodes that differ in `history.enabled` only, measured in turns; then a file of synthetic rows: "
        "jobs over 90 days with an attempt, an auction, five bids and a run each, samples and events.",
    )
    section.tables = [_cost_table(costs), _keeper_table(costs), _look_table(size)]
    section.aims = [*_cost_aims(costs), *_look_aims(size)]
    return section


def _cost_table(costs: Costs) -> Table:
    rows = [
        (f"tokens/s of {CHATS} chats at once", *_both(costs.tokens)),
        (f"jobs/s that do nothing, {IN_FLIGHT} in flight", *_both(costs.jobs)),
        _times("processor time of a token, daemon and history", costs.token_cpu_s),
        _times("processor time of a job, daemon and history", costs.job_cpu_s),
    ]
    return Table("What it costs", ("what", ON, OFF, "ratio"), rows)


def _times(what: str, cpu_s: dict[str, list[float]]) -> tuple[str, str, str, str]:
    on, off = (spread(cpu_s[name]).scaled(1e6).text(" µs", 0) for name in (ON, OFF))
    return what, on, off, ratios(cpu_s[ON], cpu_s[OFF]).text("x", 3)


def _both(per_s: dict[str, list[float]]) -> tuple[str, str, str]:
    return spread(per_s[ON]).rate(), spread(per_s[OFF]).rate(), ratios(per_s[ON], per_s[OFF]).text("x", 3)


def _keeper_table(costs: Costs) -> Table:
    rows: list[Any] = [
        ("while chatting", f"{100 * spread(costs.share_chatting).median:.1f} %"),
        ("while jobs that do nothing come as fast as they can", f"{100 * spread(costs.share_flooded).median:.1f} %"),
        ("at rest", f"{100 * costs.share_idle:.2f} %"),
    ]
    note = f"Its memory afterwards: {costs.rss_mib:.0f} MiB resident, {costs.own_mib:.0f} MiB of it its own."
    return Table("The process that keeps it: part of a core", ("when", "part"), rows, (note,))


def _look_table(size: Size) -> Table:
    rows = [(look.what, f"{look.first_ms:.0f} ms", look.later_ms.text(" ms", 0)) for look in size.looks]
    title = f"Looking up among {size.rows:,} rows ({size.mib:.0f} MiB)".replace(",", " ")
    note = "First: the first time in a process that has just opened the file; later: with its blocks in memory."
    return Table(title, ("what", "first", "later"), rows, (note,))


def _cost_aims(costs: Costs) -> list[Aim]:
    """The rates also show what else the machine does; processor time hardly does."""
    share = ratios(costs.tokens[ON], costs.tokens[OFF])
    on, off, engine = (spread(found).median for found in (*costs.token_cpu_s.values(), costs.engine_cpu_s))
    added = max(0.0, on - off) / engine
    return [
        Aim("tokens/s kept", f"≥ {LEAST_SHARE:.0%}", f"{100 * share.median:.1f} %", share.median >= LEAST_SHARE),
        Aim(
            "processor time that it adds to a token's",
            f"≤ {1 - LEAST_SHARE:.0%}",
            f"{100 * added:.2f} %",
            added <= 1 - LEAST_SHARE,
        ),
    ]


def _look_aims(size: Size) -> list[Aim]:
    aims = [
        Aim(look.what, f"≤ {LIMIT_MS:.0f} ms", look.later_ms.text(" ms", 0), look.later_ms.median <= LIMIT_MS)
        for look in size.looks
    ]
    per_row = size.mib * 2**20 / size.rows
    whole_mib = per_row * ROWS / 2**20
    return [
        *aims,
        Aim(f"file of {ROWS // 10**6} million rows", "≤ 1 GiB", f"{whole_mib:.0f} MiB", whole_mib <= LIMIT_MIB),
    ]
