"""Bids that are kept for jobs that are alike: nobody can tell them from bids that were worked out anew."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import CallForProposals, Considered, Decline, Job, Offer, Presence, Proposal
from outbid_contracts.policy import Policy, Zone
from outbid_node.auction import Auctioneer
from outbid_node.auctioned import Auction
from outbid_node.bidding import explain_offer, make_bid
from outbid_node.choosing import Want
from outbid_node.registry import Registry

ME = NodeId("meme")
KIND = ("test.noop", None)


class Own:
    """This node's own part in its auctions: it bids from an offer that we set."""

    def __init__(self) -> None:
        self.now = offer("slow", 0.002, 4)

    def open_offer(self, capability: str, model: str | None, *, own: bool) -> Offer | None:
        return self.now if self.now.free > 0 else None

    def propose(self, cfp: CallForProposals, zone: Zone | None = None) -> Proposal:
        if self.now.free <= 0:
            return Decline(node=ME, job=cfp.job, code="busy", reason="all slots are taken", temporary=True)
        return make_bid(ME, cfp.job, self.now, cfp.work, zone=zone or "lan", why=explain_offer(self.now))


class Mesh:
    """This node and two others. `Auctioneer.stretch` is what we say of one of them."""

    def __init__(self) -> None:
        self.registry, self.own = Registry(ME), Own()
        self.seq, self.stretched = 0, 1.0
        self.says: dict[str, dict[str, Any]] = {}
        for name in (ME, "aaaa", "bbbb"):
            self.beat(name)
        self.used = self.auctioneer()
        self.jobs = 0

    def auctioneer(self) -> Auctioneer:
        made = Auctioneer(me=ME, bus=cast(Any, None), registry=self.registry, worker=cast(Any, self.own))
        made.stretch = lambda capability, bid: self.stretched if bid.node == "aaaa" else 1.0
        return made

    def beat(self, node: str, **changed: Any) -> None:
        """A heartbeat as the one before, but for what is named: rate, free, most_s, zone, name."""
        says = self.says.setdefault(node, {"name": node}) | changed
        self.says[node] = says
        self.seq += 1
        made = offer("heartbeat", says.get("rate", 0.001), says.get("free", 4))
        heartbeat = Presence(
            node=NodeId(node),
            name=says["name"],
            version="1",
            boot="b",
            seq=self.seq,
            state="up",
            offers=(msgspec.structs.replace(made, most_s=says.get("most_s")),),
            zone=says.get("zone", "lan"),
        )
        self.registry.receive(heartbeat)

    def job(self, units: float = 1.0, policy: Policy | None = None) -> Job:
        self.jobs += 1
        return Job(
            id=JobId(f"j{self.jobs}"),
            owner=ME,
            capability=KIND[0],
            params={},
            work={"u": units},
            policy=policy or Policy(goal="balanced"),
            created_ms=0,
        )

    def hold(self, auctioneer: Auctioneer, job: Job) -> Auction:
        return asyncio.run(auctioneer.hold(job, 1, Want(job.work, job.policy)))


def offer(rests_on: str, rate: float, free: int) -> Offer:
    return Offer(
        capability=KIND[0],
        model=None,
        warm=True,
        slots=4,
        free=free,
        load_s=0.0,
        fixed_s=0.0,
        rates={"u": rate},
        crowding=0.5,
        default=True,
        rests_on=rests_on,
    )


def told(auction: Auction) -> list[Any]:
    """All that can be known of it, but what is a bid's own: its id, and the moment it was made at."""
    bids = [(c, msgspec.structs.replace(c.bid, bid_id="", expires_ms=0)) for c in auction.bids()]
    return [[msgspec.structs.replace(c, bid=bid) for c, bid in bids], auction.declines, auction.why, auction.how]


beats = st.one_of(
    st.fixed_dictionaries({"rate": st.sampled_from([0.001, 0.002])}),
    st.fixed_dictionaries({"free": st.integers(0, 4)}),
    st.fixed_dictionaries({"most_s": st.sampled_from([None, 1e-6])}),
    st.fixed_dictionaries({"zone": st.sampled_from(["lan", "wan"])}),
    st.fixed_dictionaries({"name": st.sampled_from(["one", "other"])}),
)
changes = st.one_of(
    st.tuples(st.just("beat"), st.sampled_from(["aaaa", "bbbb"]), beats),
    st.tuples(st.just("own"), st.sampled_from([0.001, 0.002]), st.integers(0, 4)),
    st.tuples(st.just("far"), st.sampled_from([0.001, 0.01])),
    st.tuples(st.just("stretch"), st.sampled_from([1.0, 3.0])),
    st.tuples(st.just("take"), st.sampled_from(["aaaa", "bbbb"])),
)
policies = st.sampled_from([Policy(goal="balanced"), Policy(goal="private"), Policy(goal="fastest", avoid=("aaaa",))])


def change(mesh: Mesh, what: str, *how: Any) -> None:
    if what == "beat":
        mesh.beat(how[0], **how[1])
    elif what == "own":
        mesh.own.now = offer("own", *how)
    elif what == "far":
        mesh.registry.note_rtt(NodeId("bbbb"), how[0])
        mesh.beat("bbbb")
    elif what == "stretch":
        mesh.stretched = how[0]
    else:
        mesh.registry.take(how[0], *KIND)


@given(st.lists(st.tuples(changes, st.sampled_from([1.0, 2.0]), policies), max_size=12))
def test_an_auctioneer_that_held_many_auctions_tells_what_a_new_one_would(steps: list[Any]) -> None:
    mesh = Mesh()
    for made, units, policy in steps:
        mesh.hold(mesh.used, mesh.job(units, policy))
        change(mesh, *made)
        job = mesh.job(units, policy)
        assert told(mesh.hold(mesh.used, job)) == told(mesh.hold(mesh.auctioneer(), job))


def test_of_two_jobs_that_are_alike_the_second_gets_the_bids_of_the_first_under_its_own_name() -> None:
    mesh = Mesh()
    first, second = (mesh.hold(mesh.used, mesh.job()) for _ in range(2))
    assert all(before is after for before, after in zip(first.ranked, second.ranked, strict=True))
    assert [{c.bid.job for c in auction.sheet().bids} for auction in (first, second)] == [{"j1"}, {"j2"}]


def test_a_deadline_and_what_a_node_holds_of_a_job_are_that_job_s_own() -> None:
    mesh = Mesh()
    mesh.hold(mesh.used, mesh.job())
    for job in (msgspec.structs.replace(mesh.job(), prefix=b"p"), mesh.job()):
        deadline = None if job.prefix else 1e9
        auction = asyncio.run(mesh.used.hold(job, 1, Want(job.work, job.policy, deadline=deadline)))
        assert len(auction.ranked) == 3
        assert all(isinstance(c, Considered) and c.bid.job == job.id for c in auction.ranked)
