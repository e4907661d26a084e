"""`dispatch`: what the mesh itself costs, measured with a job that does nothing in a runner process of its own."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import nats
from nats.aio.client import Client
from nats.errors import NoRespondersError

from outbid import Mesh
from outbid_bench import celery_side
from outbid_bench.nodes import NOOP, Fleet, Node, warm_noop
from outbid_bench.options import Options
from outbid_bench.processes import Helper, Redis
from outbid_bench.report import Aim, Section, Table
from outbid_bench.stats import Spread, percentile, ratios, spread
from outbid_contracts import subjects

Ask = Callable[[], Awaitable[object]]

SIZES = (1, 5, 20)
IN_FLIGHT = 64
ECHO, ECHO_FAR = "bench.echo.near", "bench.echo.far"
BARE, BARE_FAR, OUTBID, ELSEWHERE, SDK = "bare", "bare far", "outbid", "elsewhere", "sdk"

NAMES = {
    BARE: "bare nats-py request-reply with an echo process",
    BARE_FAR: "bare request to an echo on another node",
    OUTBID: "Outbid: request, auction, runner, reply",
    ELSEWHERE: "Outbid, run by another node than the one asked",
    SDK: "Outbid through the SDK, `mesh.run`",
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
    async with Fleet(options.folder) as fleet:
        for size in options.few(SIZES, 2):
            options.say(f"dispatch: one at a time, {size} nodes")
            await fleet.grow(size)
            latencies.append(await _latencies(fleet, options))
    options.say("dispatch: 64 in flight")
    async with Fleet(options.folder / "throughput") as fleet:
        await fleet.grow(1)
        rates = await _rates(fleet.nodes[0], options)
    return _section(latencies, rates)


# -- one at a time -----------------------------------------------------------------------------------------------------


async def _latencies(fleet: Fleet, options: Options) -> Latencies:
    owner, others = fleet.nodes[0], fleet.nodes[1:]
    await warm_noop(owner, *others[:4])  # of many nodes a few have a runner: 20 runners would crowd a small machine
    found = Latencies(len(fleet.nodes))
    async with _contenders(owner, others, options.folder, found.winners) as contenders:
        await _take_turns(contenders, blocks=2, each=100)  # warm up
        for _ in range(options.rounds):
            found.add(await _take_turns(contenders, blocks=options.few_or_many(3, 10), each=50))
    return found


@asynccontextmanager
async def _contenders(
    owner: Node, others: Sequence[Node], folder: Path, winners: Counter[str]
) -> AsyncIterator[dict[str, Ask]]:
    """All callers are connected to the owner's ledger."""
    local = await owner.until_up()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(Helper("echo", local.url, owner.creds, ECHO, log=folder / "echo.log"))
        client = await nats.connect(local.url, user_credentials=owner.creds)
        stack.push_async_callback(client.close)
        mesh = await stack.enter_async_context(Mesh(state=owner.state))
        contenders: dict[str, Ask] = {
            BARE: lambda: client.request(ECHO, b"{}", timeout=30),
            OUTBID: _requester(
                client, {}, lambda name: winners.update(["here" if name == owner.name else "elsewhere"])
            ),
            SDK: lambda: mesh.run(NOOP, {}),
        }
        if others:
            far = (await others[0].until_up()).url
            await stack.enter_async_context(Helper("echo", far, others[0].creds, ECHO_FAR, log=folder / "echo.log"))
            contenders[BARE_FAR] = lambda: client.request(ECHO_FAR, b"{}", timeout=30)
            contenders[ELSEWHERE] = _requester(client, {"policy": {"avoid": [owner.name]}})
            await _until_answered(contenders[BARE_FAR])
        yield contenders


async def _until_answered(ask: Ask) -> None:
    """A new subscription takes a moment to be known on the other nodes' servers."""
    for _ in range(100):
        with suppress(NoRespondersError):
            await ask()
            return
        await asyncio.sleep(0.05)
    raise RuntimeError("the echo on another node cannot be reached")


def _requester(client: Client, body: object, note: Callable[[str], None] = lambda winner: None) -> Ask:
    """A plain JSON request, as any NATS client sends it; `note` hears who won. Raises if the answer is an error."""
    data = msgspec.json.encode(body)
    subject = subjects.capability(NOOP)

    async def ask() -> object:
        reply = await client.request(subject, data, timeout=30)
        if reply.headers and "Nats-Service-Error" in reply.headers:
            raise RuntimeError(reply.headers["Nats-Service-Error"])
        note(msgspec.json.decode(reply.data)["name"])
        return reply

    return ask


async def _take_turns(contenders: Mapping[str, Ask], *, blocks: int, each: int) -> dict[str, list[float]]:
    """Seconds of each request: `each` of one contender, then of the next, so that noise hits all alike."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(blocks):
        for name, ask in contenders.items():
            for _ in range(each):
                begun = time.perf_counter()
                await ask()
                found[name].append(time.perf_counter() - begun)
    return found


# -- many at once ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Rates:
    """Jobs per second with IN_FLIGHT under way, one number per round; the set-ups of Celery that were tried."""

    per_s: dict[str, list[float]] = field(default_factory=dict)
    celery: list[celery_side.Choice] = field(default_factory=list)
    missing: str = ""

    def add(self, name: str, per_s: float) -> None:
        self.per_s.setdefault(name, []).append(per_s)


CELERY = "celery"


async def _rates(owner: Node, options: Options) -> Rates:
    await warm_noop(owner)
    rates = Rates()
    seconds = options.few_or_many(1.0, 3.0)
    async with AsyncExitStack() as stack:
        contenders = await stack.enter_async_context(_contenders(owner, (), options.folder, Counter()))
        celery = await _celery(stack, rates, options, seconds)
        for ask in contenders.values():
            await jobs_per_s(ask, 0.5)  # warm up
        for _ in range(options.rounds):
            for name, ask in contenders.items():
                rates.add(name, await jobs_per_s(ask, seconds))
            if celery is not None:
                rates.add(CELERY, await asyncio.to_thread(celery, IN_FLIGHT, seconds))
    return rates


async def _celery(
    stack: AsyncExitStack, rates: Rates, options: Options, seconds: float
) -> Callable[[int, float], float] | None:
    """The best of Celery's set-ups, running; None, with the reason, where it cannot."""
    if not celery_side.installed() or not Redis.installed():
        rates.missing = "Celery was left out: it needs the extra `bench` and a redis-server on the path"
        return None
    redis = stack.enter_context(Redis(options.folder))
    log = options.folder / "celery.log"
    options.say("dispatch: looking for Celery's best set-up")
    rates.celery = await asyncio.to_thread(celery_side.try_all, redis.url, log, IN_FLIGHT, seconds)
    best = rates.celery[0]
    worker = await asyncio.to_thread(celery_side.Worker(redis.url, best.set_up, log).__enter__)
    stack.push(worker)
    return best.drive(worker)


async def jobs_per_s(ask: Ask, seconds: float) -> float:
    """A new one for each that is done, until `seconds` are over."""
    done = 0
    begun = time.perf_counter()

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() - begun < seconds:
            await ask()
            done += 1

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return done / (time.perf_counter() - begun)


# -- what is said about it ---------------------------------------------------------------------------------------------


def _section(latencies: list[Latencies], rates: Rates) -> Section:
    section = Section(
        "dispatch",
        "Dispatch: a job that does nothing",
        "Everything but work: request, auction, award, runner process, settlement, reply. Runners are warm.",
    )
    section.tables = [_latency_table(latencies), _rate_table(rates), *_celery_table(rates)]
    section.aims = [*_latency_aims(latencies), *_rate_aims(rates)]
    return section


def _latency_table(latencies: list[Latencies]) -> Table:
    rows = [found.row(name) for found in latencies for name in NAMES if name in found.p50]
    return Table(
        "One at a time",
        ("nodes", "what", "p50", "of bare p50", "p99", "of bare p99"),
        rows,
        (
            "Promise of all rows: nothing is written to disk; the caller's wait is the retry. Outbid's job outlives "
            "the node that runs it (it is awarded again), the bare request does not.",
            "Every node is a daemon of its own with ledger and router; at most five have a warm runner. The caller is "
            "connected to the ledger of the node it asks, and so is the first echo.",
            *_winners(latencies),
        ),
    )


def _winners(latencies: Sequence[Latencies]) -> list[str]:
    counts = [f"{found.winners['here'] / found.winners.total():.0%} of {found.nodes}" for found in latencies]
    return [f"Jobs that the asked node ran itself, being the best bidder: {', '.join(counts)} nodes."]


def _rate_table(rates: Rates) -> Table:
    names = NAMES | {CELERY: f"Celery + Redis ({_called(rates.celery[0])})" if rates.celery else ""}
    promises = {
        BARE: "nothing kept",
        OUTBID: "in memory; run again if its node dies",
        SDK: "in memory; run again if its node dies",
        CELERY: "in Redis' memory, nothing on disk; acknowledged before it runs, so lost if its worker dies",
    }
    rows = []
    for name, found in rates.per_s.items():
        of_bare = ratios(found, rates.per_s[BARE]).text("x")
        of_celery = ratios(found, rates.per_s[CELERY]).text("x", 1) if CELERY in rates.per_s else "-"
        rows.append((names[name], spread(found).rate(), of_bare, of_celery, promises[name]))
    return Table(
        f"Jobs per second, {IN_FLIGHT} in flight, one node with one runner process",
        ("what", "jobs/s", "of bare", "of Celery", "promise"),
        rows,
        [note for note in (rates.missing, "Caller, servers, daemon and runner share this machine's cores.") if note],
    )


def _celery_table(rates: Rates) -> list[Table]:
    if not rates.celery:
        return []
    rows = [(choice.set_up.name, choice.way, f"{choice.per_s:.0f}") for choice in rates.celery]
    notes = (
        "One run each; the first one is what Outbid is compared with above. Result backend on, Redis without "
        "persistence (its best case), JSON, early acknowledgement as by default.",
    )
    return [Table("Celery's set-ups that were tried", ("worker", "tasks sent", "jobs/s"), rows, notes)]


def _called(choice: celery_side.Choice) -> str:
    return f"{choice.set_up.name}, sent {choice.way}"


def _latency_aims(latencies: list[Latencies]) -> list[Aim]:
    five = next((found for found in latencies if found.nodes == 5), None)
    if five is None:
        return []
    multiple = five.multiple(OUTBID)
    return [Aim("p50 of a no-op job with 5 nodes, of a bare request", "≤ 6x", multiple.text("x"), multiple.median <= 6)]


def _rate_aims(rates: Rates) -> list[Aim]:
    if CELERY not in rates.per_s:
        return []
    multiple = ratios(rates.per_s[SDK], rates.per_s[CELERY])
    return [Aim("jobs/s through the SDK, of Celery's best", "≥ 5x", multiple.text("x", 1), multiple.median >= 5)]
