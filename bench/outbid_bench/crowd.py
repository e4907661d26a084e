"""A mesh of many nodes, played on the real bus of one real node: what a face or a registry sees of a hundred machines.

The played nodes send heartbeats, answer lease checks and questions for jobs, tell events of their jobs and, while
somebody watches, auctions. They bid for nothing. Everything is made from a seed, so two runs show the same mesh.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections import deque
from types import TracebackType

import nats
from msgspec.structs import replace
from nats.aio.client import Client
from nats.aio.msg import Msg

from outbid_contracts import subjects
from outbid_contracts.codec import Format, decode, encode
from outbid_contracts.events import Awarded, Finished, JobEvent, Progressed
from outbid_contracts.ids import BidId, JobId, NodeId
from outbid_contracts.live import WATCH_FOR_S, AuctionHeld, Watch
from outbid_contracts.messages import (
    AttemptRecord,
    Bid,
    BidSheet,
    Considered,
    Decline,
    Gpu,
    JobRecord,
    LeaseCheck,
    LeaseState,
    Offer,
    Presence,
    Resources,
)
from outbid_contracts.policy import Policy
from outbid_contracts.requests import JobList, JobQuery

KINDS = ("pi", "laptop", "nas", "gaming-pc", "workstation")
MODELS = ("llama-3.1-8b-q4", "qwen2.5-14b-q4", "sdxl-turbo")
STEPS = 20
STARTED_MS = 1_760_000_000_000
"""When the first of the jobs that are there already was made (Unix time)."""


class Crowd:
    """`async with` it. `nodes` machines with `jobs` ended jobs in all, `events_per_s` of jobs under way."""

    def __init__(
        self, url: str, creds: str, *, nodes: int = 100, jobs: int = 1000, events_per_s: float = 50.0, seed: int = 1
    ) -> None:
        self._url, self._creds = url, creds
        self._random = random.Random(seed)
        self._nc: Client = Client()
        self._every_s = 1 / events_per_s
        self._auctions_until_s = 0.0
        self._numbers = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self.members = [self._member(number) for number in range(nodes)]
        self.records: dict[JobId, JobRecord] = {}
        for number in range(jobs):
            self._keep(self._ended(number))
        self._running: deque[tuple[JobId, int]] = deque()

    async def __aenter__(self) -> Crowd:
        self._nc = await nats.connect(self._url, user_credentials=self._creds)
        for member in self.members:
            for verb, answer in (("lease", self._lease), ("jobs", self._jobs)):
                await self._nc.subscribe(subjects.node(member.node, verb), cb=answer)
        await self._nc.subscribe(subjects.WATCH, cb=self._watched)
        await self._nc.flush()
        self._tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._work())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for member in self.members:
            await self._nc.publish(subjects.presence(member.node), encode(replace(member, state="leaving")))
        await self._nc.close()

    # -- what goes on -------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Each member once a second, spread over it."""
        for second in itertools.count():
            began = time.monotonic()
            for number, member in enumerate(self.members):
                now = self._moved(member, number, second)
                self.members[number] = now
                await self._nc.publish(subjects.presence(now.node), encode(now))
                await asyncio.sleep(max(0.0, began + (number + 1) / len(self.members) - time.monotonic()))

    async def _work(self) -> None:
        """A job begins, takes its steps and ends; about as many are under way as there are members."""
        while True:
            await asyncio.sleep(self._every_s)
            if len(self._running) < len(self.members):
                await self._begin()
                continue
            job, step = self._running.popleft()
            record = self.records[job]
            if step < STEPS:
                await self._tell(Progressed(job=job, step=step + 1, steps=STEPS, eta_s=(STEPS - step) * 0.5))
                self._running.append((job, step + 1))
                continue
            node = record.node or record.owner
            self._keep(replace(record, state="done", ended_ms=_now_ms(), took_s=3.1, promised_s=2.9))
            await self._tell(Finished(job=job, node=node, name=node, attempt=1, result={}))

    async def _begin(self) -> None:
        record = self._new(next(self._numbers))
        self._keep(record)
        node = record.node or record.owner
        await self._tell(Awarded(job=record.id, node=node, name=node, attempt=1, promised_s=2.9, model=record.model))
        if time.monotonic() < self._auctions_until_s:
            held = AuctionHeld(
                job=record.id,
                owner=record.owner,
                capability=record.capability,
                model=record.model,
                policy=record.policy,
                sheet=record.sheets[0],
                told_ms=_now_ms(),
            )
            await self._nc.publish(subjects.auction(record.owner), encode(held))
        self._running.append((record.id, 0))

    async def _tell(self, event: JobEvent) -> None:
        await self._nc.publish(subjects.job_event(event.job), encode(event, Format.JSON))

    # -- what is asked ------------------------------------------------------------------------------------------------

    async def _lease(self, msg: Msg) -> None:
        check = decode(msg.data, LeaseCheck)
        await msg.respond(encode(LeaseState(node=_asked(msg), unknown=check.attempts)))

    async def _jobs(self, msg: Msg) -> None:
        query, owner = decode(msg.data, JobQuery), _asked(msg)
        mine = (record for record in reversed(self.records.values()) if record.owner == owner)
        if query.verb == "list":
            found = [record for record in mine if query.state in (None, record.state)][: query.limit]
        else:
            wanted = {query.job, *query.jobs}
            found = [record for record in mine if record.id in wanted]
        await msg.respond(encode(JobList(jobs=tuple(found))))

    async def _watched(self, msg: Msg) -> None:
        if decode(msg.data, Watch).auctions:
            self._auctions_until_s = time.monotonic() + WATCH_FOR_S

    # -- what it is made of -------------------------------------------------------------------------------------------

    def _keep(self, record: JobRecord) -> None:
        """The newest last, and no more than a face would ask for."""
        self.records.pop(record.id, None)
        self.records[record.id] = record
        if len(self.records) > 2000:
            self.records.pop(next(iter(self.records)))

    def _member(self, number: int) -> Presence:
        kind, rng = KINDS[number % len(KINDS)], self._random
        gpu = (Gpu(name="RTX 4070", vendor="nvidia", memory_mib=12_282, memory_free_mib=9000, busy_percent=0.0),)
        offer = Offer(
            capability="image.generate" if number % 3 == 2 else "llm.chat",
            model=MODELS[number % 3],
            warm=number % 2 == 0,
            slots=4,
            free=rng.randint(0, 4),
            load_s=rng.uniform(1, 20),
            fixed_s=0.1,
            rates={"new_tokens": rng.uniform(0.005, 0.2)},
            blocked="a member of a played mesh",
        )
        resources = Resources(
            cpu_count=rng.choice((4, 8, 16)),
            memory_mib=rng.choice((4096, 16_384, 65_536)),
            memory_free_mib=2048,
            gpus=gpu if kind in ("gaming-pc", "workstation") else (),
            gpu=gpu[0].name if kind in ("gaming-pc", "workstation") else None,
            battery_percent=rng.uniform(20, 100) if kind == "laptop" else None,
            on_battery=True if kind == "laptop" else None,
        )
        return Presence(
            node=NodeId(f"crowd{number:04}"),
            name=f"{kind}-{number}",
            version="0.1.0",
            boot="played",
            seq=0,
            state="draining" if number % 17 == 16 else "up",
            offers=(offer,),
            resources=resources,
            in_use="somebody plays a game" if number % 13 == 12 else "",
        )

    def _moved(self, member: Presence, number: int, second: int) -> Presence:
        load = 50 + 45 * math.sin(second / 7 + number)
        old = member.resources
        resources = replace(
            old,
            cpu_percent=round(load, 1),
            gpus=tuple(replace(gpu, busy_percent=round(load, 1)) for gpu in old.gpus),
            power_w=round(5 + load * (0.2 if not old.gpus else 3.0), 1),
        )
        return replace(member, seq=member.seq + 1, resources=resources, running=int(load // 30))

    def _new(self, number: int) -> JobRecord:
        owner, node = self._random.choice(self.members).node, self._random.choice(self.members).node
        id = JobId(f"crowd-{number:06}")
        return JobRecord(
            id=id,
            owner=owner,
            capability="llm.chat",
            model=MODELS[number % 2],
            policy=Policy(goal=("fastest", "balanced", "green")[number % 3]),
            state="running",
            created_ms=_now_ms(),
            node=node,
            attempts=(AttemptRecord(attempt=1, node=node, started_ms=_now_ms()),),
            sheets=(self._sheet(id, node),),
            promised_s=2.9,
        )

    def _ended(self, number: int) -> JobRecord:
        began = STARTED_MS + number * 60_000
        record = self._new(next(self._numbers))
        state = "failed" if number % 19 == 18 else "done"
        return replace(record, state=state, created_ms=began, ended_ms=began + 3100, took_s=3.1)

    def _sheet(self, job: JobId, winner: NodeId) -> BidSheet:
        others = self._random.sample(self.members, min(4, len(self.members)))
        bidding = [winner, *(member.node for member in others[:3] if member.node != winner)]
        bids = tuple(
            Considered(bid=_bid(job, node, 2.0 + place), name=node, score=2.0 + place, parts={"finish": 2.0 + place})
            for place, node in enumerate(bidding)
        )
        decline = Decline(node=others[-1].node, job=job, code="busy", reason="all 4 slots are taken", temporary=True)
        return BidSheet(
            attempt=1,
            how="asked",
            opened_ms=_now_ms(),
            took_ms=4.2,
            asked=len(bids) + 1,
            bids=bids,
            declines=(decline,),
            winner=winner,
            why="finishes first",
        )


def _bid(job: JobId, node: NodeId, finish_s: float) -> Bid:
    return Bid(
        bid_id=BidId(f"{job}-{node}"),
        node=node,
        job=job,
        expires_ms=_now_ms() + 1000,
        start_s=0.01,
        finish_s=finish_s,
        finish_p90_s=finish_s * 1.5,
        energy_j=finish_s * 40,
        cost_usd=finish_s * 1e-6,
        warm=True,
        zone="lan",
        why="from 40 jobs",
    )


def _asked(msg: Msg) -> NodeId:
    return NodeId(msg.subject.split(".")[2])


def _now_ms() -> int:
    return round(time.time() * 1000)
