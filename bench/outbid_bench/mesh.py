"""`mesh`: what a job costs in meshes of 1 to 50 real nodes, beside the least that an auction costs (`prototype`)."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from outbid import Mesh
from outbid_bench import mesh_report
from outbid_bench.asking import Ask, noop, submitting, take_turns
from outbid_bench.mesh_found import ASKED, BARE, OUTBID, PLAIN_ASKED, PLAIN_STANDING, STANDING, Found
from outbid_bench.mesh_messages import Spy, of_jobs
from outbid_bench.mesh_parts import Parts, spent_s
from outbid_bench.nodes import NOOP, Fleet, Node, warm_noop
from outbid_bench.options import Options
from outbid_bench.processes import Helper, free_port
from outbid_bench.prototype import Place, Prototype, plain_server, prototype
from outbid_bench.report import Section
from outbid_bench.rivals.driving import drive
from outbid_bench.stats import percentile
from outbid_contracts import subjects
from outbid_contracts.codec import Format, decode, encode
from outbid_contracts.events import Awarded
from outbid_contracts.ids import NodeId
from outbid_contracts.live import WATCH_EVERY_S, AuctionHeld, Watch

SIZES = (1, 5, 20, 50)
IN_FLIGHT = 64
RUNNERS = 5
"""So many nodes have a runner: more would crowd a small machine with processes that have nothing to do."""

START_AT_ONCE, BESIDE_MANY, MANY = 4, 2, 20
"""So many nodes are started at a time; fewer beside many others, all of which greet each that comes."""

START_TIMEOUT_S = 240.0
SETTLE_S = 2.0
LIGHT = ("--set", "history.enabled=false")
"""Of the nodes without a runner: they have no history to keep."""

LONG = "test.echo"
LONG_S = 0.06
"""Long enough to be asked about (`auction.ASK_WORTH_S`)."""

ECHO = "bench.mesh.echo"


async def run(options: Options) -> Section:
    found: list[Found] = []
    async with Fleet(options.folder / "alone") as fleet:
        found.append(await _measured(fleet, 1, options))
    hub = free_port()
    async with Fleet(options.folder / "mesh") as fleet:
        for size in options.few(SIZES[1:], 1):
            found.append(await _measured(fleet, size, options, hub))
    return mesh_report.section(found)


async def _measured(fleet: Fleet, size: int, options: Options, hub: int | None = None) -> Found:
    options.say(f"mesh: starting {size} nodes")
    found = Found(size)
    begun = time.monotonic()
    await grow(fleet, size, hub)
    found.started_s = time.monotonic() - begun
    owner, others = fleet.nodes[0], fleet.nodes[1:RUNNERS]
    await warm_noop(owner, *others)
    await asyncio.sleep(SETTLE_S)
    parts = Parts(fleet.nodes)
    await _rest(found, parts, owner, options.few_or_many(1.0, 3.0))
    async with _contenders(fleet, options, found) as contenders, _auctions(owner) as auctions:
        await _messages(found, owner, contenders[OUTBID], auctions)
        for ask in contenders.values():
            await drive(submitting(ask), IN_FLIGHT, 0.3)  # warm up
        for n in range(options.rounds):
            options.say(f"mesh: {size} nodes, round {n + 1} of {options.rounds}")
            await _round(found, contenders, auctions, parts, options)
    for kind in mesh_report.MEMORY_KINDS:
        found.memory_mib[kind] = parts.memory_mib(kind)
    found.node_mib = parts.node_mib()
    return found


async def grow(fleet: Fleet, size: int, hub: int | None) -> None:
    """Real nodes, a few at a time. All but the first, which listens at the route port `hub`, are told its address:
    looking for each other by multicast, 50 nodes on one machine would take minutes of its processor. Gossip makes the
    same full mesh of routes.
    """
    alone = ("--set", "mesh.discovery=false")
    if not fleet.nodes:
        await fleet.add("n0", (*alone, *(("--route-port", str(hub)) if hub else ())))
    while (count := len(fleet.nodes)) < size:
        at_once = START_AT_ONCE if count < MANY else BESIDE_MANY
        names = [f"n{n}" for n in range(count, min(size, count + at_once))]
        joining = (*alone, "--peer", f"127.0.0.1:{hub}")
        started = [fleet.spawn(name, (*joining, *(LIGHT if int(name[1:]) >= RUNNERS else ()))) for name in names]
        await asyncio.gather(*(node.until_up(START_TIMEOUT_S) for node in started))
    await fleet.until_whole(START_TIMEOUT_S)


# -- who is measured ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _contenders(fleet: Fleet, options: Options, found: Found) -> AsyncIterator[dict[str, Ask]]:
    """All callers are connected to the first node's ledger, but for those of the prototype on a plain server."""
    owner, log = fleet.nodes[0], options.folder / "helpers.log"
    places = [Place(node.name, (await node.until_up()).url, node.creds) for node in fleet.nodes]
    async with AsyncExitStack() as stack:
        plain_url = stack.enter_context(plain_server(options.folder))
        plain_places = [Place(place.name, plain_url, None) for place in places]
        ours = await stack.enter_async_context(prototype(places, log))
        plain = await stack.enter_async_context(prototype(plain_places, log))
        await stack.enter_async_context(Helper("echo", places[0].url, owner.creds, ECHO, log=log))
        client = await nats.connect(places[0].url, user_credentials=owner.creds)
        stack.push_async_callback(client.close)
        stack.callback(_note_unanswered, found, ours)
        yield {
            BARE: lambda: client.request(ECHO, b"{}", timeout=30),
            STANDING: ours.standing,
            ASKED: ours.asked,
            OUTBID: noop(client, {}, lambda name: found.here.update([name == owner.name])),
            PLAIN_STANDING: plain.standing,
            PLAIN_ASKED: plain.asked,
        }


def _note_unanswered(found: Found, caller: Prototype) -> None:
    found.unanswered = caller.unanswered


# -- rounds ------------------------------------------------------------------------------------------------------------


async def _round(
    found: Found, contenders: Mapping[str, Ask], auctions: Auctions, parts: Parts, options: Options
) -> None:
    alone = await take_turns(contenders, blocks=options.few_or_many(2, 3), each=25)
    for name, times in alone.items():
        found.p50.setdefault(name, []).append(percentile(times, 0.5))
        found.p99.setdefault(name, []).append(percentile(times, 0.99))
    for name, ask in contenders.items():
        before = parts.cpu_s()
        seconds = options.few_or_many(0.5, 1.2 if name in (OUTBID, PLAIN_ASKED) else 0.6)
        driven = await drive(submitting(ask), IN_FLIGHT, seconds)
        found.per_s.setdefault(name, []).append(driven.per_s)
        if name == OUTBID:
            for part, cpu_s in spent_s(before, parts.cpu_s()).items():
                found.cpu_per_job_s.setdefault(part, []).append(cpu_s / driven.jobs)
    for _ in range(options.few_or_many(10, 20)):
        awarded_s, held = await auctions.one()
        found.awarded_s.append(awarded_s)
        found.auction_s.append(held.sheet.took_ms / 1000)
        found.asked_nodes.append(held.sheet.asked)


# -- auctions ----------------------------------------------------------------------------------------------------------


class Auctions:
    """Holds auctions of long jobs at one owner, and hears from it how each went."""

    def __init__(self, mesh: Mesh, client: Client) -> None:
        self._mesh = mesh
        self._nc = client
        self._held: dict[str, asyncio.Future[AuctionHeld]] = {}
        self._watch_again = 0.0

    async def start(self, owner: NodeId) -> None:
        await self._nc.subscribe(subjects.auction(owner), cb=self._on_held)
        await self._nc.flush()

    async def one(self) -> tuple[float, AuctionHeld]:
        """Seconds until the caller hears of the award, and what the owner tells of the auction."""
        await self._look_on()
        begun, awarded_s, held = time.perf_counter(), 0.0, None
        async for event in self._mesh.stream(LONG, {"text": "a", "delay_s": LONG_S}):
            if isinstance(event, Awarded):
                awarded_s = time.perf_counter() - begun
                held = self._auction_of(event.job)
        if held is None:
            raise RuntimeError("a job ended without having been awarded")
        async with asyncio.timeout(5):
            return awarded_s, await held

    async def _look_on(self) -> None:
        if time.monotonic() >= self._watch_again:
            self._watch_again = time.monotonic() + WATCH_EVERY_S
            await self._nc.publish(subjects.WATCH, encode(Watch(auctions=True), Format.JSON))
            await self._nc.flush()

    def _auction_of(self, job: str) -> asyncio.Future[AuctionHeld]:
        """It and the event of its award come on different ways: either may be the first."""
        return self._held.setdefault(job, asyncio.get_running_loop().create_future())

    async def _on_held(self, msg: Msg) -> None:
        held = decode(msg.data, AuctionHeld)
        future = self._auction_of(held.job)
        if not future.done():
            future.set_result(held)


@asynccontextmanager
async def _auctions(owner: Node) -> AsyncIterator[Auctions]:
    local = await owner.until_up()
    async with Mesh(state=owner.state) as mesh, await nats.connect(local.url, user_credentials=owner.creds) as client:
        auctions = Auctions(mesh, client)
        await auctions.start(local.node)
        yield auctions


# -- at rest, and by message -------------------------------------------------------------------------------------------


async def _rest(found: Found, parts: Parts, owner: Node, seconds: float) -> None:
    before, begun = parts.cpu_s(), time.monotonic()
    await asyncio.sleep(seconds)
    took_s = time.monotonic() - begun
    found.cpu_at_rest = {part: cpu_s / took_s for part, cpu_s in spent_s(before, parts.cpu_s()).items()}
    async with Spy(owner) as spy:
        begun = time.monotonic()
        await asyncio.sleep(seconds)
        found.other_messages_per_s = (await spy.counted()).total() / (time.monotonic() - begun)


async def _messages(found: Found, owner: Node, ask: Ask, auctions: Auctions) -> None:
    """Of no-op jobs with many in flight, and of long ones one at a time."""
    async with Spy(owner) as spy:
        jobs = (await drive(submitting(ask), IN_FLIGHT, 0.2)).jobs
        found.messages[NOOP] = _per_job(await spy.counted(), jobs)
    async with Spy(owner) as spy:
        jobs = 10
        for _ in range(jobs):
            await auctions.one()
        found.messages[LONG] = _per_job(await spy.counted(), jobs)


def _per_job(counted: Counter[str], jobs: int) -> dict[str, float]:
    return {kind: count / jobs for kind, count in of_jobs(counted).items()}
