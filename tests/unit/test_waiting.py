"""Who goes next when a slot is free, and that no more go than there are slots."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.durable import AHEAD_S
from outbid_contracts.errors import Busy
from outbid_contracts.ids import BidId, JobId, NodeId
from outbid_contracts.messages import Bid, Job, Offer, Presence
from outbid_contracts.policy import Policy
from outbid_node.auction import Auctioneer
from outbid_node.auctioned import Auction
from outbid_node.choosing import Want, plan
from outbid_node.ranking import rank
from outbid_node.registry import Registry
from outbid_node.waiting import FEW, Ticket, WaitingRoom

ME, OTHER = NodeId("meme"), NodeId("other")
KEY = ("llm.chat", None)


def presence(seq: int, free: int) -> Presence:
    offer = Offer(
        capability="llm.chat",
        model="small",
        warm=True,
        slots=64,
        free=free,
        load_s=0,
        fixed_s=0,
        rates={},
        default=True,
    )
    return Presence(node=OTHER, name="other", version="1", boot="b", seq=seq, state="up", offers=(offer,))


class Mesh:
    """One other node, whose free slots we set."""

    def __init__(self, free: int, limit: int = 10) -> None:
        self.registry = Registry(ME)
        self.room = WaitingRoom(self.registry, limit)
        self.seq = 0
        self.gone: list[Any] = []
        self.tickets: list[Ticket] = []
        self.free(free)

    def free(self, count: int) -> None:
        self.seq += 1
        self.registry.receive(presence(self.seq, count))

    def park(self, name: Any, order: float = 0.0) -> Ticket:
        ticket = self.room.ticket(KEY, order, lambda: self.gone.append(name))
        self.tickets.append(ticket)
        self.room.queue(ticket)
        return ticket


def job(created_ms: int = 0) -> Job:
    return Job(id=JobId("j"), owner=ME, capability="llm.chat", params={}, work={}, created_ms=created_ms)


async def call(mesh: Mesh, name: Any, created_ms: int = 0) -> Ticket:
    ticket = await mesh.room.enter(job(created_ms), lambda event: None)
    mesh.gone.append(name)
    return ticket


async def full(mesh: Mesh) -> list[Ticket]:
    """Enough callers on their way that the next one looks whether there is room."""
    return [await mesh.room.enter(job(), lambda event: None) for _ in range(FEW)]


def test_the_earlier_goes_first_whatever_came_first_into_the_room() -> None:
    mesh = Mesh(free=0)
    for order in (30, 10, 20):
        mesh.park(order, order)
    mesh.free(2)
    assert mesh.gone == [10, 20]
    assert len(mesh.room) == 1


def test_only_as_many_go_as_there_are_slots_nobody_is_on_the_way_to() -> None:
    mesh = Mesh(free=0)
    for n in range(6):
        mesh.park(n, n)
    mesh.free(2)
    mesh.free(2)
    mesh.free(3)
    assert mesh.gone == [0, 1, 2]
    mesh.room.leave(mesh.tickets[0])  # it got its slot elsewhere, so its place here is still free
    assert mesh.gone == [0, 1, 2, 3]


def test_a_batch_job_goes_before_what_came_ten_minutes_after_it() -> None:
    mesh = Mesh(free=0)
    mesh.park("batch", 0 + AHEAD_S["batch"] * 1000)
    mesh.park("interactive, nine minutes later", 540_000 + AHEAD_S["interactive"] * 1000)
    mesh.park("interactive, eleven minutes later", 660_000 + AHEAD_S["interactive"] * 1000)
    mesh.free(1)
    mesh.room.leave(mesh.tickets[1])
    mesh.room.leave(mesh.tickets[0])
    assert mesh.gone == ["interactive, nine minutes later", "batch", "interactive, eleven minutes later"]


def test_one_that_left_is_passed_over() -> None:
    mesh = Mesh(free=0)
    first = mesh.park("first")
    mesh.park("second")
    mesh.room.leave(first)
    assert len(mesh.room) == 1
    mesh.free(1)
    assert mesh.gone == ["second"]


def test_durable_jobs_wait_on_while_nobody_is_able() -> None:
    mesh = Mesh(free=0)
    mesh.park("patient")
    mesh.registry.drop(OTHER, "left")
    assert mesh.gone == []
    mesh.free(1)
    assert mesh.gone == ["patient"]


def test_a_durable_job_passes_only_a_free_slot_that_nobody_waits_for() -> None:
    mesh = Mesh(free=2)
    tickets = [mesh.room.ticket(KEY, order, lambda: None) for order in range(4)]
    assert [mesh.room.passes(ticket) for ticket in tickets[:3]] == [True, True, False]
    mesh.room.queue(tickets[2])
    mesh.free(3)
    assert (tickets[2].passing, mesh.room.passes(tickets[3])) == (True, False)
    mesh.room.leave(tickets[0])
    assert mesh.room.passes(tickets[3])
    mesh.registry.drop(OTHER, "left")
    assert not mesh.room.passes(mesh.room.ticket(KEY, 5, lambda: None))


async def test_with_nobody_able_left_a_caller_is_let_go_to_hear_why() -> None:
    mesh = Mesh(free=0)
    on_their_way = await full(mesh)
    waiting = asyncio.create_task(call(mesh, "caller"))
    await asyncio.sleep(0)
    assert not mesh.gone
    for ticket in on_their_way:
        mesh.room.leave(ticket)
    assert not waiting.done()
    mesh.registry.drop(OTHER, "left")
    await asyncio.wait_for(waiting, 1)


async def test_a_new_caller_does_not_overtake_those_that_wait() -> None:
    mesh = Mesh(free=0)
    mesh.park("parked", 5)
    later = asyncio.create_task(call(mesh, "later", created_ms=10))
    earlier = asyncio.create_task(call(mesh, "earlier", created_ms=1))
    await asyncio.sleep(0)
    mesh.free(3)
    await asyncio.wait([later, earlier], timeout=1)
    assert mesh.gone[0] == "parked" or mesh.gone == ["earlier", "parked", "later"]
    assert mesh.gone.index("earlier") < mesh.gone.index("later")


async def test_callers_beyond_the_limit_are_told_so_and_leave_no_trace() -> None:
    mesh = Mesh(free=0, limit=1)
    mesh.park("durable jobs do not count")
    waiting = asyncio.create_task(call(mesh, "one"))
    await asyncio.sleep(0)
    with pytest.raises(Busy, match="max_waiting"):
        await call(mesh, "two")
    waiting.cancel()
    await asyncio.wait([waiting])
    assert len(mesh.room) == 1
    again = asyncio.create_task(call(mesh, "three"))
    await asyncio.sleep(0)
    assert not again.done()
    again.cancel()


async def test_who_finds_no_slot_after_all_keeps_its_place() -> None:
    mesh = Mesh(free=1)
    first = await call(mesh, "first", created_ms=1)
    mesh.free(0)
    mesh.park("second", 2)
    back = asyncio.create_task(mesh.room.wait(first))
    await asyncio.sleep(0)
    mesh.free(1)
    await asyncio.wait_for(back, 1)
    assert "second" not in mesh.gone


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 100)), max_size=30))
def test_nothing_waits_while_there_is_room_and_nothing_goes_without(steps: list[tuple[int, int]]) -> None:
    """Whatever the order of arrivals, departures and changes of free slots."""
    mesh = Mesh(free=0)
    slots = 0
    for number, (kind, value) in enumerate(steps):
        passing = [ticket for ticket in mesh.tickets if ticket.passing]
        if kind <= 1:
            mesh.park(number, value)
        elif kind == 2 and passing:
            mesh.room.leave(passing[value % len(passing)])
        else:
            slots = value % 4
            mesh.free(slots)
        passing = [ticket for ticket in mesh.tickets if ticket.passing]
        waiting = [ticket for ticket in mesh.tickets if not ticket.passing and not ticket.gone]
        assert len(waiting) == len(mesh.room)
        assert not waiting or len(passing) >= slots


# -- looking again ----------------------------------------------------------------------------------------------------


class Fleet:
    """A fast node and a slow one with one slot each, for chats; a third that embeds."""

    def __init__(self) -> None:
        self.registry = Registry(ME)
        self.room = WaitingRoom(self.registry, limit=10)
        self.gone: list[tuple[str, NodeId | None]] = []
        self.seq = 0

    def beat(
        self,
        name: str,
        unit_s: float,
        free: int,
        *frees_s: float,
        capability: str = "llm.chat",
        slots: int = 1,
        crowding: float = 0.0,
    ) -> None:
        self.seq += 1
        offer = Offer(
            capability=capability,
            model=None,
            warm=True,
            slots=slots,
            free=free,
            load_s=0,
            fixed_s=0,
            rates={"u": unit_s},
            crowding=crowding,
            frees_s=frees_s,
            default=True,
        )
        node = NodeId(name)
        self.registry.receive(
            Presence(node=node, name=name, version="1", boot="b", seq=self.seq, state="up", offers=(offer,))
        )

    def park(self, name: str) -> Ticket:
        ticket = self.room.ticket(KEY, 0.0, lambda: self.gone.append((name, ticket.target)), load=self._want)
        self.room.queue(ticket)
        return ticket

    def _want(self) -> Want:
        return Want({"u": 1.0}, Policy(goal="fastest"))


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every walk over a queue."""
    made: list[int] = []

    def walk(*args: Any, **options: Any) -> Any:
        made.append(1)
        return plan(*args, **options)

    monkeypatch.setattr("outbid_node.waiting.plan", walk)
    return made


def test_room_for_other_work_is_no_reason_to_look(walks: list[int]) -> None:
    fleet = Fleet()
    fleet.beat("fast", 1.0, 0, 5.0)
    fleet.beat("slow", 100.0, 1)
    fleet.beat("other", 1.0, 0, 5.0, capability="text.embed")
    fleet.park("job")
    before = len(walks)
    fleet.registry.note_free(NodeId("other"), "text.embed", None, 1)
    assert len(walks) == before
    assert not fleet.gone
    fleet.registry.note_free(NodeId("fast"), "llm.chat", None, 1)
    assert len(walks) > before
    assert fleet.gone == [("job", NodeId("fast"))]


def test_a_slot_that_was_not_taken_after_all_is_the_next_ones() -> None:
    fleet = Fleet()
    fleet.beat("fast", 1.0, 0, 5.0)
    fleet.beat("slow", 100.0, 1)
    first = fleet.park("first")
    fleet.park("second")
    fleet.registry.note_free(NodeId("fast"), "llm.chat", None, 1)
    assert fleet.gone == [("first", NodeId("fast"))], "the other is on its way there"
    fleet.room.leave(first)
    assert fleet.gone[1:] == [("second", NodeId("fast"))]


def test_one_that_took_the_slot_it_went_for_leaves_nothing_to_look_for(walks: list[int]) -> None:
    fleet = Fleet()
    fleet.beat("fast", 1.0, 0, 5.0)
    fleet.beat("slow", 100.0, 1)
    first = fleet.park("first")
    fleet.park("second")
    fleet.registry.note_free(NodeId("fast"), "llm.chat", None, 1)
    before = len(walks)
    fleet.registry.take(NodeId("fast"), "llm.chat", None, 1.0)
    fleet.room.leave(first)
    assert len(walks) == before
    assert len(fleet.gone) == 1


# -- the auction of one that was let go --------------------------------------------------------------------------------


def bid(name: str, finish_s: float, *, later: bool = False) -> Bid:
    return Bid(
        bid_id=BidId(f"bid{name}"),
        node=NodeId(name),
        job=JobId("j"),
        expires_ms=0,
        start_s=0.0,
        finish_s=finish_s,
        finish_p90_s=finish_s,
        energy_j=0.0,
        cost_usd=0.0,
        warm=True,
        zone="lan",
        model=None,
        later=later,
    )


def test_who_was_let_go_for_a_slot_leaves_the_better_later_one_to_those_before_it() -> None:
    """The walk gave the fast node's next slots to others: an auction of one job does not know of them."""
    registry = Registry(ME)
    auctioneer = Auctioneer(me=ME, bus=cast(Any, None), registry=registry, worker=cast(Any, None))
    want, auction = Want({"u": 1.0}, Policy(goal="fastest")), Auction(JobId("j"), 1)
    auction.ranked = rank([bid("slow", 50.0), bid("fast", 3.0, later=True), bid("mid", 40.0)], want.policy)

    def chosen(target: str | None) -> str | None:
        best = auctioneer.choice(auction, want, NodeId(target) if target else None)
        return best.bid.node if best is not None else None

    assert chosen(None) == "fast"
    assert chosen("slow") == "mid", "its own or one that is better"
    assert chosen("elsewhere") == "fast", "the slot that it went for is gone, so all is weighed anew"
    auction.refused.add(NodeId("slow"))
    assert chosen("slow") == "fast"


def test_after_a_refusal_the_later_bid_of_that_node_is_compared_with_who_is_idle() -> None:
    """It is told last: the first of the others is not the best for that."""
    registry = Registry(ME)
    auctioneer = Auctioneer(me=ME, bus=cast(Any, None), registry=registry, worker=cast(Any, None))
    want, auction = Want({"u": 1.0}, Policy(goal="fastest")), Auction(JobId("j"), 1)
    auction.ranked = rank([bid("fast", 1.0), bid("slow", 500.0)], want.policy)
    auction.refused.add(NodeId("fast"))
    auction.ranked += rank([bid("fast", 2.0, later=True)], want.policy)
    best = auctioneer.choice(auction, want)
    assert best is not None
    assert (best.bid.node, best.bid.later) == ("fast", True)


def test_an_auction_for_one_slot_that_is_gone_sends_the_job_back_to_the_queue() -> None:
    """It saw no busy nodes, so it cannot tell whether another idle one is worth taking."""
    registry = Registry(ME)
    auctioneer = Auctioneer(me=ME, bus=cast(Any, None), registry=registry, worker=cast(Any, None))
    want, auction = Want({"u": 1.0}, Policy(goal="fastest")), Auction(JobId("j"), 1, aim=NodeId("fast"))
    auction.ranked = rank([bid("fast", 3.0), bid("slow", 50.0)], want.policy)
    best = auctioneer.choice(auction, want, NodeId("fast"))
    assert best is not None
    assert best.bid.node == "fast"
    auction.refused.add(NodeId("fast"))
    assert auctioneer.choice(auction, want, NodeId("fast")) is None


# -- several at the same instant ---------------------------------------------------------------------------------------


def test_six_jobs_whose_bids_were_all_asked_for_before_the_first_award_spread_as_the_estimates_say() -> None:
    """Two nodes alike, on which a job takes half as long again for each that runs beside it."""
    fleet = Fleet()
    for name in ("a", "b"):
        fleet.beat(name, 1.0, 4, slots=4, crowding=0.5)
    registry = fleet.registry
    auctioneer = Auctioneer(me=ME, bus=cast(Any, None), registry=registry, worker=cast(Any, None))
    wants = [Want({"u": 1.0}, Policy(goal="fastest")) for _ in range(6)]
    auctions = [Auction(JobId("j"), 1, given={NodeId("a"): 0, NodeId("b"): 0}) for _ in wants]
    for auction, want in zip(auctions, wants, strict=True):
        auction.ranked = rank([bid("a", 1.0), bid("b", 1.1)], want.policy)
    went: list[str] = []
    for auction, want in zip(auctions, wants, strict=True):
        auctioneer.catch_up(auction, msgspec.structs.replace(job(), work=want.work), want)
        best = auctioneer.choice(auction, want)
        assert best is not None
        went.append(best.bid.node)
        registry.take(best.bid.node, "llm.chat", None, best.bid.finish_s)
    assert went == ["a", "b", "a", "b", "a", "b"]
