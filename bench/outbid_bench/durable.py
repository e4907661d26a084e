"""`durable`: jobs that are on disk before they are acknowledged, beside other systems set to promise the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import nats
import psutil
from nats.aio.client import Client

from outbid import Mesh
from outbid_bench.dispatch import CELERY, RATE_COLUMNS, rates, tried_table
from outbid_bench.machine import filesystem
from outbid_bench.nodes import NOOP, Fleet, Node, warm_noop
from outbid_bench.options import Options
from outbid_bench.report import Aim, Section, Table
from outbid_bench.rivals.driving import Submit
from outbid_bench.rivals.rounds import MANY, Compared, Contender, driving
from outbid_bench.rivals.systems import CELERY_SYNCED_CHOICES, JETSTREAM, SYNCED
from outbid_bench.stats import ratios, spread
from outbid_bench.syncs import PROBES, Syncs, probe
from outbid_contracts import subjects

MESH = 5
BATCH = 200
SECONDS = 0.55
"""Of each block."""

RAW, SDK, BATCHES, GROUPS = "raw", "sdk", "batches", "groups"

Works = Callable[[float], Awaitable[float]]
"""Works for so many seconds and gives jobs per second."""

_OURS = "job and result synced; runs again at once"
NAMES = {
    RAW: "Outbid: requests `mesh.jobs.submit` and `mesh.jobs.result`",
    SDK: "Outbid through the SDK, `mesh.submit` and `job.result`",
    BATCHES: f"Outbid through the SDK, batches of {BATCH}, `mesh.submit_many`",
    CELERY: "Celery, one by one",
    GROUPS: f"Celery, groups of {BATCH}",
}


@dataclass(slots=True)
class Rates:
    """Of one mesh size: per way to work the jobs per second of each round."""

    nodes: int
    per_s: dict[str, list[float]] = field(default_factory=dict)

    def of_celery(self, name: str) -> str:
        reference = GROUPS if name in (BATCHES, GROUPS) else CELERY
        return ratios(self.per_s[name], self.per_s[reference]).text("x", 1) if reference in self.per_s else "-"


@dataclass(slots=True)
class Found:
    compared: Compared
    rates: list[Rates] = field(default_factory=list)
    """Batches, and more than one node."""
    syncs: dict[str, float] = field(default_factory=dict)
    """Per contender: syncs per job, where they were counted."""
    cpu_ms: dict[str, float] = field(default_factory=dict)
    """Per process that takes part: processor time per job through the SDK."""
    fsync_s: list[float] = field(default_factory=list)
    disk: str = ""


async def run(options: Options) -> Section:
    found = Found(Compared(), disk=filesystem(options.folder))
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(Fleet(options.folder / "nodes"))
        await fleet.grow(1)
        await warm_noop(fleet.nodes[0])
        outbid = await stack.enter_async_context(_outbid(fleet.nodes[0]))
        await _enter(found.compared, outbid, stack, options)
        await _compare(found, options)
        await _count_cpu(found, fleet.nodes[0], options)
        await _count_syncs(found, fleet.nodes[0].ledger().pid, options)
        await _batches(1, outbid, found, options)
        if not options.quick:
            options.say(f"durable: {MESH} nodes")
            await fleet.grow(MESH)
            await warm_noop(*fleet.nodes)
            await _batches(MESH, outbid, found, options)
    return _section(found)


# -- contenders --------------------------------------------------------------------------------------------------------


class Outbid:
    """One client of one node: bare requests, and the SDK."""

    def __init__(self, client: Client, mesh: Mesh) -> None:
        self._client = client
        self._mesh = mesh

    async def raw(self, _: int) -> Awaitable[object]:
        submitted = await self._ask("submit", {"capability": NOOP, "params": {}})
        return self._ask("result", {"job": submitted["job"], "wait_s": 30})

    async def _ask(self, verb: str, body: object) -> Any:
        reply = await self._client.request(subjects.jobs(verb), msgspec.json.encode(body), timeout=40)
        if reply.headers and "Nats-Service-Error" in reply.headers:
            raise RuntimeError(reply.headers["Nats-Service-Error"])
        return msgspec.json.decode(reply.data)

    async def sdk(self, _: int) -> Awaitable[object]:
        return (await self._mesh.submit(NOOP, {})).result()

    async def batches(self, seconds: float) -> float:
        """One batch after the other, each submitted as one and waited for."""
        done, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            jobs = await self._mesh.submit_many([{"capability": NOOP}] * BATCH)
            await asyncio.gather(*(job.result() for job in jobs))
            done += BATCH
        return done / (time.perf_counter() - begun)


@asynccontextmanager
async def _outbid(node: Node) -> AsyncIterator[Outbid]:
    async with AsyncExitStack() as stack:
        client = await nats.connect((await node.until_up()).url, user_credentials=node.creds)
        stack.push_async_callback(client.close)
        yield Outbid(client, await stack.enter_async_context(Mesh(state=node.state)))


async def _enter(compared: Compared, outbid: Outbid, stack: AsyncExitStack, options: Options) -> None:
    submits: dict[str, Submit] = {RAW: outbid.raw, SDK: outbid.sdk}
    for name, submit in submits.items():
        compared.contenders[name] = Contender(NAMES[name], _OURS, driving(submit))
    choices = options.few(CELERY_SYNCED_CHOICES, 1)
    await compared.enter_best(stack, CELERY, choices, options.few_or_many(0.4, SECONDS), options)
    await compared.enter(stack, SYNCED, options)


# -- rounds ------------------------------------------------------------------------------------------------------------


async def _compare(found: Found, options: Options) -> None:
    options.say("durable: 1, 16 and 64 in flight")
    await found.compared.warm_up()
    for _ in range(options.rounds):
        found.fsync_s.append(probe(options.folder))
        await found.compared.round(options.few_or_many(0.4, SECONDS))


async def _batches(nodes: int, outbid: Outbid, found: Found, options: Options) -> None:
    rates = Rates(nodes)
    found.rates.append(rates)
    works = _works(outbid, found.compared, one_by_one=nodes > 1)
    seconds = options.few_or_many(0.4, SECONDS)
    for work in works.values():
        await work(0.3)  # warm up
    for _ in range(options.rounds):
        for name, work in works.items():
            rates.per_s.setdefault(name, []).append(await work(seconds))


def _works(outbid: Outbid, compared: Compared, *, one_by_one: bool) -> dict[str, Works]:
    """`one_by_one`: also what the comparison measured with one node."""
    works: dict[str, Works] = {BATCHES: outbid.batches}
    single = (RAW, SDK, CELERY) if one_by_one else ()
    if CELERY in compared.contenders:
        groups = compared.running[CELERY]

        async def in_groups(seconds: float) -> float:
            return (await groups.drive(BATCH, seconds, way="in groups")).per_s

        works[GROUPS] = in_groups
    return {name: _many(compared.contenders[name]) for name in single if name in compared.contenders} | works


def _many(contender: Contender) -> Works:
    async def work(seconds: float) -> float:
        return (await contender.drive(MANY, seconds)).per_s

    return work


async def _count_cpu(found: Found, node: Node, options: Options) -> None:
    parts = {"daemon": psutil.Process(node.process.pid), "its ledger": node.ledger(), "the caller": psutil.Process()}
    before_s = {name: _cpu_s(process) for name, process in parts.items()}
    driven = await found.compared.contenders[SDK].drive(MANY, options.few_or_many(0.4, 2 * SECONDS))
    for name, process in parts.items():
        found.cpu_ms[name] = 1000 * (_cpu_s(process) - before_s[name]) / driven.jobs


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _count_syncs(found: Found, ledger: int, options: Options) -> None:
    """Per job, in a run of its own, because counting slows."""
    for name, contender in found.compared.contenders.items():
        server = found.compared.running[name].server if name in found.compared.running else None
        pid = ledger if server is None else server.syncing
        if pid is None:
            continue
        async with Syncs(pid, options.folder) as syncs:
            driven = await contender.drive(MANY, options.few_or_many(0.4, SECONDS))
        if syncs.count is not None:
            found.syncs[name] = syncs.count / driven.jobs


# -- what is said about it ---------------------------------------------------------------------------------------------


def _section(found: Found) -> Section:
    section = Section(
        "durable",
        "Durable jobs: on disk before they are acknowledged",
        f"A job that does nothing, submitted and waited for by one client. Disk: {found.disk}; a sync of 512 bytes took"
        f" {spread(found.fsync_s).scaled(1000).text(' ms')} (medians of {PROBES}, before each round).",
    )
    compared = found.compared
    section.tables = [
        _rate_table(compared),
        _batch_table(found),
        _cpu_table(found),
        *_sync_table(found),
        *tried_table(compared),
    ]
    section.aims = _aims(compared)
    section.plots = [compared.bars("rates", f"No-op jobs per second, {MANY} in flight, each synced to disk")]
    return section


def _rate_table(compared: Compared) -> Table:
    sdk = compared.contenders[SDK]
    ceiling = compared.contenders.get(JETSTREAM)
    rows = [
        (
            found.title,
            *rates(found),
            found.ms("taken_p50_s").text(" ms", 1),
            found.of(ceiling).text("x") if ceiling is not None else "-",
            sdk.of(found).text("x", 1),
            found.promise,
        )
        for found in compared.contenders.values()
    ]
    return Table(
        "Jobs per second, one node or one worker",
        ("what", *RATE_COLUMNS, "taken p50 of 1", f"of JetStream, {MANY}", f"SDK is, {MANY}", "promise"),
        rows,
        (
            *compared.left_out,
            "Times are since the submission: until the job was acknowledged (taken), until its result was there. The "
            "ratios are of jobs per second, round by round.",
            "Redis: appendonly yes, appendfsync always; it syncs once for all it was sent during one turn of its loop, "
            "a node once for all that came while its last sync was under way. Celery: task_acks_late, "
            "task_reject_on_worker_lost. PostgreSQL as it comes, with synchronous_commit on.",
            "Results are kept on disk by Celery for a day, by Outbid for a week, by the others for an hour or less; "
            "the hand-written JetStream and procrastinate keep none.",
        ),
    )


def _batch_table(found: Found) -> Table:
    rows = [
        (str(rates.nodes), NAMES[name], spread(per_s).rate(), rates.of_celery(name))
        for rates in found.rates
        for name, per_s in rates.per_s.items()
    ]
    notes = (f"One by one: {MANY} in flight. Batches are compared with groups. Promises as above; a batch is one.",)
    return Table(f"Batches of {BATCH}, and a mesh", ("nodes", "what", "jobs/s", "of Celery"), rows, notes)


def _cpu_table(found: Found) -> Table:
    notes = (
        "A job is written twice, accepted and ended, one after the other, and each is waited for. Jobs in flight share "
        "these commits: from some messages on as one atomic batch, for which the ledger makes a folder and syncs four "
        "times, however many they are. The daemon is one thread, so its time per job bounds the jobs per second.",
    )
    rows = [(name, f"{ms:.2f} ms") for name, ms in found.cpu_ms.items()]
    return Table(f"Processor time per job through the SDK, {MANY} in flight", ("process", "per job"), rows, notes)


def _sync_table(found: Found) -> list[Table]:
    rows = [
        (found.compared.contenders[name].title, f"{per_job:.2f}", f"{1 / per_job:.1f}" if per_job else "-")
        for name, per_job in found.syncs.items()
    ]
    if not rows:
        return []
    note = (
        "Calls of fsync and fdatasync by the node's ledger, by Redis or by the nats-server, counted by strace in a run "
        "of its own. PostgreSQL's processes are not counted."
    )
    return [Table(f"Syncs, {MANY} in flight", ("what", "syncs per job", "jobs per sync"), rows, (note,))]


def _aims(compared: Compared) -> list[Aim]:
    celery = compared.contenders.get(CELERY)
    if celery is None:
        return []
    multiple = compared.contenders[SDK].of(celery)
    return [
        Aim("durable jobs/s through the SDK, of Celery's best", "≥ 5x", multiple.text("x", 1), multiple.median >= 5)
    ]
