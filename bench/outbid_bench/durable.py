"""`durable`: jobs that are on disk before they are acknowledged, beside Celery with a Redis that promises the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import nats
from nats.aio.client import Client

from outbid import Mesh
from outbid_bench import celery_side
from outbid_bench.dispatch import IN_FLIGHT, Ask, jobs_per_s
from outbid_bench.machine import filesystem
from outbid_bench.nodes import NOOP, Fleet, Node, warm_noop
from outbid_bench.options import Options
from outbid_bench.processes import Redis
from outbid_bench.report import Aim, Section, Table
from outbid_bench.stats import percentile, ratios, spread
from outbid_bench.syncs import PROBES, Syncs, probe
from outbid_contracts import subjects

SIZES = (1, 5)
BATCH = 200
RAW, SDK, BATCHES, CELERY, GROUPS = "raw", "sdk", "batches", "celery", "groups"
ALONE = 20
"""Jobs one at a time, in each round."""

Drive = Callable[[float], Awaitable[float]]
"""Works for so many seconds and gives jobs per second."""


@dataclass(slots=True)
class Rates:
    """Of one mesh size: per contender the jobs per second of each round; syncs per job where they were counted."""

    nodes: int
    per_s: dict[str, list[float]] = field(default_factory=dict)
    syncs: dict[str, float | None] = field(default_factory=dict)

    def of_celery(self, name: str) -> str:
        reference = GROUPS if name in (BATCHES, GROUPS) else CELERY
        return ratios(self.per_s[name], self.per_s[reference]).text("x", 1) if reference in self.per_s else "-"


@dataclass(slots=True)
class Found:
    rates: list[Rates] = field(default_factory=list)
    tried: list[celery_side.Choice] = field(default_factory=list)
    fsync_s: list[float] = field(default_factory=list)
    alone_s: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Per contender: seconds until a job was acknowledged and until its result was there, nothing else under way."""
    disk: str = ""
    missing: str = ""


async def run(options: Options) -> Section:
    found = Found(disk=filesystem(options.folder))
    async with AsyncExitStack() as stack:
        celery = await _celery(stack, found, options)
        fleet = await stack.enter_async_context(Fleet(options.folder / "nodes"))
        for size in options.few(SIZES, 1):
            options.say(f"durable: {IN_FLIGHT} in flight, {size} nodes")
            await fleet.grow(size)
            await _measure(fleet, celery, found, options)
    return _section(found)


# -- contenders --------------------------------------------------------------------------------------------------------


class Celery:
    """Its best set-up, running."""

    def __init__(self, redis: Redis, worker: celery_side.Worker, choice: celery_side.Choice) -> None:
        self.redis = redis
        self.worker = worker
        self._drive = choice.drive(worker)

    async def window(self, seconds: float) -> float:
        return await asyncio.to_thread(self._drive, IN_FLIGHT, seconds)

    async def groups(self, seconds: float) -> float:
        return await asyncio.to_thread(self.worker.groups, BATCH, seconds)

    async def alone(self) -> tuple[float, float]:
        return await asyncio.to_thread(self.worker.alone)


async def _celery(stack: AsyncExitStack, found: Found, options: Options) -> Celery | None:
    """None, with the reason in `found`, where it cannot be had."""
    if not celery_side.installed() or not Redis.installed():
        found.missing = "Celery was left out: it needs the extra `bench` and a redis-server on the path"
        return None
    redis = stack.enter_context(Redis(options.folder, synced=True))
    log = options.folder / "celery.log"
    options.say("durable: looking for Celery's best set-up")
    found.tried = await asyncio.to_thread(
        celery_side.try_all,
        *(redis.url, log, IN_FLIGHT, options.few_or_many(1.0, 3.0)),
        set_ups=celery_side.DURABLE_SET_UPS,
        ways=tuple(celery_side.WAYS),
    )
    best = found.tried[0]
    worker = await asyncio.to_thread(celery_side.Worker(redis.url, best.set_up, log).__enter__)
    stack.push(worker)
    return Celery(redis, worker, best)


class Outbid:
    """One client of one node: bare requests, and the SDK."""

    def __init__(self, client: Client, mesh: Mesh) -> None:
        self._client = client
        self._mesh = mesh

    async def raw(self) -> None:
        submitted = await self._ask("submit", {"capability": NOOP, "params": {}})
        await self._ask("result", {"job": submitted["job"], "wait_s": 30})

    async def _ask(self, verb: str, body: object) -> Any:
        reply = await self._client.request(subjects.jobs(verb), msgspec.json.encode(body), timeout=40)
        if reply.headers and "Nats-Service-Error" in reply.headers:
            raise RuntimeError(reply.headers["Nats-Service-Error"])
        return msgspec.json.decode(reply.data)

    async def sdk(self) -> None:
        await (await self._mesh.submit(NOOP, {})).result()

    async def batches(self, seconds: float) -> float:
        """One batch after the other, each submitted as one and waited for."""
        done, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            jobs = await self._mesh.submit_many([{"capability": NOOP}] * BATCH)
            await asyncio.gather(*(job.result() for job in jobs))
            done += BATCH
        return done / (time.perf_counter() - begun)

    async def alone(self) -> tuple[float, float]:
        begun = time.perf_counter()
        job = await self._mesh.submit(NOOP, {})
        acknowledged = time.perf_counter() - begun
        await job.result()
        return acknowledged, time.perf_counter() - begun


@asynccontextmanager
async def _outbid(node: Node) -> AsyncIterator[Outbid]:
    async with AsyncExitStack() as stack:
        client = await nats.connect((await node.until_up()).url, user_credentials=node.creds)
        stack.push_async_callback(client.close)
        yield Outbid(client, await stack.enter_async_context(Mesh(state=node.state)))


# -- rounds ------------------------------------------------------------------------------------------------------------


async def _measure(fleet: Fleet, celery: Celery | None, found: Found, options: Options) -> None:
    await warm_noop(*fleet.nodes)
    rates = Rates(len(fleet.nodes))
    found.rates.append(rates)
    async with _outbid(fleet.nodes[0]) as outbid:
        drives = _drives(outbid, celery)
        for drive in drives.values():
            await drive(0.5)  # warm up
        for _ in range(options.rounds):
            found.fsync_s.append(probe(options.folder))
            for name, drive in drives.items():
                rates.per_s.setdefault(name, []).append(await drive(options.few_or_many(1.0, 3.0)))
            if rates.nodes == 1:
                await _alone(outbid, celery, found)
        if rates.nodes == 1:
            pids = dict.fromkeys(drives, fleet.nodes[0].ledger().pid)
            pids |= dict.fromkeys((CELERY, GROUPS), celery.redis.pid) if celery is not None else {}
            rates.syncs = {name: await _syncs(drives[name], pids[name], options) for name in drives}


def _drives(outbid: Outbid, celery: Celery | None) -> dict[str, Drive]:
    drives: dict[str, Drive] = {RAW: _many(outbid.raw), SDK: _many(outbid.sdk), BATCHES: outbid.batches}
    return drives if celery is None else {CELERY: celery.window, **drives, GROUPS: celery.groups}


def _many(ask: Ask) -> Drive:
    return lambda seconds: jobs_per_s(ask, seconds)


async def _alone(outbid: Outbid, celery: Celery | None, found: Found) -> None:
    for _ in range(ALONE):
        found.alone_s.setdefault(SDK, []).append(await outbid.alone())
        if celery is not None:
            found.alone_s.setdefault(CELERY, []).append(await celery.alone())


async def _syncs(drive: Drive, pid: int, options: Options) -> float | None:
    """Syncs per job, in a run of its own, because counting slows."""
    async with Syncs(pid, options.folder) as syncs:
        begun = time.perf_counter()
        jobs = await drive(options.few_or_many(1.0, 3.0)) * (time.perf_counter() - begun)
    return None if syncs.count is None else syncs.count / jobs


# -- what is said about it ---------------------------------------------------------------------------------------------

_OURS = "on disk before acknowledged; run again if what runs it dies; result on disk before it is told"
_THEIRS = "the same: append-only file synced before each answer, late acknowledgement, rejected if its worker is lost"
NAMES = {
    RAW: ("Outbid: requests `mesh.jobs.submit` and `mesh.jobs.result`", _OURS),
    SDK: ("Outbid through the SDK, `mesh.submit` and `job.result`", _OURS),
    BATCHES: (f"Outbid through the SDK, batches of {BATCH}, `mesh.submit_many`", _OURS + "; a batch as one"),
}


def _section(found: Found) -> Section:
    section = Section(
        "durable",
        "Durable jobs: on disk before they are acknowledged",
        f"A job that does nothing, submitted and waited for by one client. Disk: {found.disk}; a sync of 512 bytes took"
        f" {spread(found.fsync_s).scaled(1000).text(' ms')} (medians of {PROBES}, before each round).",
    )
    section.tables = [_rate_table(found), *_alone_table(found), *_sync_table(found), *_tried_table(found)]
    section.aims = _aims(found)
    return section


def _names(found: Found) -> Mapping[str, tuple[str, str]]:
    if not found.tried:
        return NAMES
    best = found.tried[0]
    return NAMES | {
        CELERY: (f"Celery + Redis ({best.set_up.name}, sent {best.way})", _THEIRS),
        GROUPS: (f"Celery + Redis ({best.set_up.name}, groups of {BATCH})", _THEIRS),
    }


def _rate_table(found: Found) -> Table:
    names = _names(found)
    rows = [
        (str(rates.nodes), names[name][0], spread(per_s).rate(), rates.of_celery(name), names[name][1])
        for rates in found.rates
        for name, per_s in rates.per_s.items()
    ]
    return Table(
        f"Jobs per second, {IN_FLIGHT} in flight (batches and groups: {BATCH})",
        ("nodes", "what", "jobs/s", "of Celery", "promise"),
        rows,
        [
            *([found.missing] if found.missing else []),
            "Measured in turns, the ratio within each round; batches are compared with groups. Celery's Redis and "
            "worker run beside the nodes, idle while the others are measured, and the other way round.",
            "Redis syncs once for all it was sent during one turn of its loop, a node once for all that came while its "
            "last sync was under way. Both keep results on disk: Celery for a day, Outbid for a week.",
        ],
    )


def _alone_table(found: Found) -> list[Table]:
    names = _names(found)
    rows = []
    for name, seconds in found.alone_s.items():
        both = [[percentile(column, q) * 1000 for q in (0.5, 0.99)] for column in zip(*seconds, strict=True)]
        rows.append((names[name][0], *(f"{ms:.1f} ms" for column in both for ms in column)))
    columns = ("what", "acknowledged p50", "p99", "result p50", "p99")
    return [Table("One at a time, one node", columns, rows, ("Seconds since it was submitted.",))]


def _sync_table(found: Found) -> list[Table]:
    names = _names(found)
    rows = [
        (names[name][0], f"{per_job:.2f}", f"{1 / per_job:.1f}" if per_job else "-")
        for name, per_job in found.rates[0].syncs.items()
        if per_job is not None
    ]
    if not rows:
        return []
    note = "Calls of fsync and fdatasync by the node's ledger or by Redis, counted by strace in a run of its own."
    return [Table("Syncs, one node", ("what", "syncs per job", "jobs per sync"), rows, (note,))]


def _tried_table(found: Found) -> list[Table]:
    if not found.tried:
        return []
    rows = [(choice.set_up.name, choice.way, f"{choice.per_s:.0f}") for choice in found.tried]
    notes = (
        "One run each; the first one is what Outbid is compared with above. Redis: appendonly yes, appendfsync always. "
        "Celery: task_acks_late, task_reject_on_worker_lost, results in the same Redis, JSON.",
    )
    return [Table("Celery's set-ups that were tried", ("worker", "tasks sent", "jobs/s"), rows, notes)]


def _aims(found: Found) -> list[Aim]:
    rates = found.rates[0]
    if CELERY not in rates.per_s:
        return []
    multiple = ratios(rates.per_s[SDK], rates.per_s[CELERY])
    return [
        Aim("durable jobs/s through the SDK, of Celery's best", "≥ 5x", multiple.text("x", 1), multiple.median >= 5)
    ]
