"""`dispatch`: what the mesh itself costs, measured with a job that does nothing in a runner process of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nats

from outbid import Mesh
from outbid_bench.asking import Ask, noop, submitting, take_turns, until_answered
from outbid_bench.nodes import NOOP, Fleet, Node, warm_noop
from outbid_bench.options import Options
from outbid_bench.processes import Helper
from outbid_bench.report import Aim, Section, Table
from outbid_bench.rivals.rounds import COUNTS, MANY, Compared, Contender, driving
from outbid_bench.rivals.systems import CELERY_CHOICES, INTERACTIVE
from outbid_bench.stats import Spread, percentile, ratios, spread

SIZES = (1, 5)
IN_FLIGHT = MANY
ECHO, ECHO_FAR = "bench.echo.near", "bench.echo.far"
BARE, BARE_FAR, OUTBID, ELSEWHERE, SDK = "bare", "bare far", "outbid", "elsewhere", "sdk"
CELERY = "celery"

NAMES = {
    BARE: "bare nats-py request-reply with an echo process",
    BARE_FAR: "bare request to an echo on another node",
    OUTBID: "Outbid: request, auction, runner, reply",
    ELSEWHERE: "Outbid, run by another node than the one asked",
    SDK: "Outbid through the SDK, `mesh.run`",
}
PROMISES = {
    BARE: "nothing kept",
    OUTBID: "in memory; runs again if its node dies",
    SDK: "in memory; runs again if its node dies",
}


@dataclass(slots=True)
class Latencies:
    """Of one mesh size: per contender one p50 and p99 for each round, in seconds."""

    nodes: int
    winners: Counter[str] = field(default_factory=Counter)
    """Jobs of OUTBID by whether the asked node ran them itself: here, elsewhere."""
    p50: dict[str, list[float]] = field(default_factory=dict)
    p99: dict[str, list[float]] = field(default_factory=dict)

    def add(self, found: Mapping[str, list[float]]) -> None:
        for name, seconds in found.items():
            self.p50.setdefault(name, []).append(percentile(seconds, 0.5))
            self.p99.setdefault(name, []).append(percentile(seconds, 0.99))

    def multiple(self, name: str) -> Spread:
        return ratios(self.p50[name], self.p50[BARE])

    def row(self, name: str) -> tuple[str, ...]:
        p50, p99 = spread(self.p50[name]).scaled(1000), spread(self.p99[name]).scaled(1000)
        tail = ratios(self.p99[name], self.p99[BARE])
        return (
            str(self.nodes),
            NAMES[name],
            p50.text(" ms"),
            self.multiple(name).text("x"),
            p99.text(" ms"),
            tail.text("x"),
        )


async def run(options: Options) -> Section:
    latencies: list[Latencies] = []
    async with Fleet(options.folder / "latency") as fleet:
        for size in options.few(SIZES, 2):
            options.say(f"dispatch: one at a time, {size} nodes")
            await fleet.grow(size)
            latencies.append(await _latencies(fleet, options))
    async with Fleet(options.folder / "rates") as fleet:
        await fleet.grow(1)
        compared = await _compared(fleet.nodes[0], options)
    return _section(latencies, compared)


# -- one at a time -----------------------------------------------------------------------------------------------------


async def _latencies(fleet: Fleet, options: Options) -> Latencies:
    owner, others = fleet.nodes[0], fleet.nodes[1:]
    await warm_noop(owner, *others)
    found = Latencies(len(fleet.nodes))
    async with contenders(owner, others, options.folder, found.winners) as asks:
        await take_turns(asks, blocks=2, each=100)  # warm up
        for _ in range(options.rounds):
            found.add(await take_turns(asks, blocks=options.few_or_many(3, 6), each=50))
    return found


@asynccontextmanager
async def contenders(
    owner: Node, others: Sequence[Node], folder: Path, winners: Counter[str]
) -> AsyncIterator[dict[str, Ask]]:
    """All callers are connected to the owner's ledger."""
    local = await owner.until_up()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(Helper("echo", local.url, owner.creds, ECHO, log=folder / "echo.log"))
        client = await nats.connect(local.url, user_credentials=owner.creds)
        stack.push_async_callback(client.close)
        mesh = await stack.enter_async_context(Mesh(state=owner.state))
        found: dict[str, Ask] = {
            BARE: lambda: client.request(ECHO, b"{}", timeout=30),
            OUTBID: noop(client, {}, lambda name: winners.update(["here" if name == owner.name else "elsewhere"])),
            SDK: lambda: mesh.run(NOOP, {}),
        }
        if others:
            far = (await others[0].until_up()).url
            await stack.enter_async_context(Helper("echo", far, others[0].creds, ECHO_FAR, log=folder / "echo.log"))
            found[BARE_FAR] = lambda: client.request(ECHO_FAR, b"{}", timeout=30)
            found[ELSEWHERE] = noop(client, {"policy": {"avoid": [owner.name]}})
            await until_answered(found[BARE_FAR])
        yield found


# -- many at once ------------------------------------------------------------------------------------------------------


async def _compared(owner: Node, options: Options) -> Compared:
    await warm_noop(owner)
    compared = Compared()
    seconds = options.few_or_many(0.4, 0.6)
    async with AsyncExitStack() as stack:
        asks = await stack.enter_async_context(contenders(owner, (), options.folder, Counter()))
        for name, ask in asks.items():
            compared.contenders[name] = Contender(NAMES[name], PROMISES[name], driving(submitting(ask)))
        choices = options.few(CELERY_CHOICES, 1)
        await compared.enter_best(stack, CELERY, choices, options.few_or_many(0.4, 1.0), options)
        await compared.enter(stack, INTERACTIVE, options)
        options.say("dispatch: 1, 16 and 64 in flight")
        await compared.warm_up()
        for _ in range(options.rounds):
            await compared.round(seconds)
    return compared


async def jobs_per_s(ask: Ask, seconds: float, in_flight: int = IN_FLIGHT) -> float:
    """A new one for each that is done, until `seconds` are over."""
    return (await driving(submitting(ask))(in_flight, seconds)).per_s


# -- what is said about it ---------------------------------------------------------------------------------------------


def _section(latencies: list[Latencies], compared: Compared) -> Section:
    section = Section(
        "dispatch",
        "Dispatch: a job that does nothing",
        "Everything but work: request, auction, award, runner process, settlement, reply. Runners are warm.",
    )
    section.tables = [_rate_table(compared), _latency_table(latencies), *tried_table(compared)]
    section.aims = [*_latency_aims(latencies), *_rate_aims(compared)]
    section.plots = [compared.bars("rates", f"No-op jobs per second, {MANY} in flight, nothing synced to disk")]
    return section


def _latency_table(latencies: list[Latencies]) -> Table:
    rows = [found.row(name) for found in latencies for name in NAMES if name in found.p50]
    return Table(
        "One at a time, in a mesh",
        ("nodes", "what", "p50", "of bare p50", "p99", "of bare p99"),
        rows,
        (
            "Promise of all rows: nothing is written to disk; the caller's wait is the retry. Outbid's job outlives "
            "the node that runs it (it is awarded again), the bare request does not.",
            "Every node is a daemon of its own with ledger and router and a warm runner. The caller is connected to "
            "the ledger of the node it asks, and so is the first echo.",
            *_winners(latencies),
        ),
    )


def _winners(latencies: Sequence[Latencies]) -> list[str]:
    counts = [f"{found.winners['here'] / found.winners.total():.0%} of {found.nodes}" for found in latencies]
    return [f"Jobs that the asked node ran itself, being the best bidder: {', '.join(counts)} nodes."]


RATE_COLUMNS = (*(f"jobs/s, {count} in flight" for count in COUNTS), "p50 of 1", "p99 of 1")


def rates(found: Contender) -> tuple[str, ...]:
    """The cells under RATE_COLUMNS."""
    return (
        *(spread(found.per_s(count)).rate() for count in COUNTS),
        found.ms("p50_s").text(" ms", 1),
        found.ms("p99_s").text(" ms", 1),
    )


def _rate_table(compared: Compared) -> Table:
    bare, sdk = compared.contenders[BARE], compared.contenders[SDK]
    rows = [
        (found.title, *rates(found), found.of(bare).text("x", 3), sdk.of(found).text("x"), found.promise)
        for found in compared.contenders.values()
    ]
    return Table(
        "Jobs per second, one node or one worker",
        ("what", *RATE_COLUMNS, f"of bare, {MANY}", f"`mesh.run` is, {MANY}", "promise"),
        rows,
        (
            *compared.left_out,
            "Every caller is one process, every job is waited for and its result checked. Callers, servers, daemon and "
            "workers share this machine's cores; the others are idle while one is measured (arq's worker polls, so it "
            "is stopped).",
            "What bounds Outbid's rate is one process, the daemon of the asked node: no other on a job's way keeps a "
            "core busy. A bare request has no such process between caller and worker. What a job takes of the "
            "processor in each process is told in the section on meshes.",
            "Redis keeps nothing on disk, its clients' best case. hiredis and uvloop are installed. Where a caller can "
            "only poll (arq, taskiq, procrastinate), all its jobs together ask 2 000 times a second.",
        ),
    )


def tried_table(compared: Compared) -> list[Table]:
    rows = [(title, f"{per_s:.0f}") for title, per_s in compared.tried]
    notes = (
        "One run each, the first one takes part above. They were the best three of all set-ups (pool, "
        "processes, prefetch, sent one by one, by threads or in groups), which are too many to try each time.",
    )
    return [Table(f"Celery's set-ups that were tried, {MANY} in flight", ("set-up", "jobs/s"), rows, notes)] * bool(
        rows
    )


def _latency_aims(latencies: list[Latencies]) -> list[Aim]:
    five = next((found for found in latencies if found.nodes == 5), None)
    if five is None:
        return []
    multiple = five.multiple(OUTBID)
    return [Aim("p50 of a no-op job with 5 nodes, of a bare request", "≤ 6x", multiple.text("x"), multiple.median <= 6)]


def _rate_aims(compared: Compared) -> list[Aim]:
    celery = compared.contenders.get(CELERY)
    if celery is None:
        return []
    multiple = compared.contenders[SDK].of(celery)
    return [Aim("jobs/s through the SDK, of Celery's best", "≥ 5x", multiple.text("x", 1), multiple.median >= 5)]
