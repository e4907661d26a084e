"""The nodes that offer one kind of work, in orders that find the best few without looking at all of them.

Pure: no bus, and the clock is an argument. An owner keeps one `Places` for each (capability, model) its jobs ask for.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Offer, Work
from outbid_contracts.policy import Zone
from outbid_node.estimate import Estimate, estimate

FEW = 12
"""So many nodes are simply all looked at."""

CLASS = 32.0
"""Work whose amounts differ by less than about this factor is one class, with orders of its own."""

MAX_CLASSES = 16

OVERDUE_S = 2.0
"""A slot that should have been free so long ago, while nothing was heard."""

MOST = 1e18
"""Amounts beyond it are one class: work may be absurd."""


@dataclass(slots=True, eq=False)
class Place:
    """One node's offer as an owner sees it now. `frees`: when each taken slot is expected to be free again, in seconds
    of the owner's clock, the soonest first; there may be fewer than slots are taken.

    `way_s` is the round trip to it, `stretch` by how much its promises run short. `given`: awards that this owner ever
    sent there.
    """

    node: NodeId
    offer: Offer
    free: int
    frees: tuple[float, ...] = ()
    zone: Zone = "lan"
    name: str = ""
    way_s: float = 0.0
    stretch: float = 1.0
    given: int = 0

    @property
    def idle(self) -> bool:
        return self.free > 0 and not self.offer.blocked

    def known_frees(self, now: float) -> list[float]:
        """Without those that should have come long ago: they are as good as unknown."""
        return [frees for frees in self.frees if frees > now - OVERDUE_S]

    def frees_in(self, now: float) -> float | None:
        """Seconds until the first taken slot is expected to be free; None if that is not known."""
        known = self.known_frees(now)
        return max(0.0, known[0] - now) if known else None


class Order:
    """Nodes by a number, the smallest first; ties by id."""

    def __init__(self) -> None:
        self._line: list[tuple[float, NodeId]] = []
        self._values: dict[NodeId, float] = {}

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[NodeId]:
        return (node for _, node in self._line)

    def put(self, node: NodeId, value: float) -> None:
        before = self._values.get(node)
        if before == value:
            return
        if before is not None:
            del self._line[bisect_left(self._line, (before, node))]
        self._values[node] = value
        insort(self._line, (value, node))

    def drop(self, node: NodeId) -> None:
        value = self._values.pop(node, None)
        if value is not None:
            del self._line[bisect_left(self._line, (value, node))]


@dataclass(slots=True)
class Orders:
    """By seconds, by joules and by dollars; those of a busy node's seconds are until it would be done."""

    time: Order = field(default_factory=Order)
    energy: Order = field(default_factory=Order)
    money: Order = field(default_factory=Order)

    def drop(self, node: NodeId) -> None:
        for order in (self.time, self.energy, self.money):
            order.drop(node)


class _Class:
    """The orders for work of about one size, computed for its first example: they show where to look, not who is best.
    `stale` are the nodes that changed since.
    """

    def __init__(self, work: Work, nodes: Iterable[NodeId], *, costs: bool) -> None:
        """`costs`: keep the orders by joules and dollars too."""
        self.work = work
        self.costs = costs
        self.idle, self.busy = Orders(), Orders()
        self.stale = set(nodes)
        self._in: dict[NodeId, Orders] = {}
        self._known: dict[tuple[NodeId, int], tuple[Offer, Estimate]] = {}
        """By free slots: most news are that one is taken or free again."""

    def refresh(self, places: Mapping[NodeId, Place]) -> None:
        for node in self.stale:
            place = places.get(node)
            if place is None or place.offer.blocked:
                self._leave(node)
            else:
                self._arrange(node, place)
        self.stale.clear()

    def _leave(self, node: NodeId) -> None:
        if (orders := self._in.pop(node, None)) is not None:
            orders.drop(node)

    def _arrange(self, node: NodeId, place: Place) -> None:
        free, begins, mine = place.free, 0.0, self.idle
        if free <= 0:
            begins, mine = place.frees[0] if place.frees else 0.0, self.busy
        if self._in.get(node) is not mine:
            self._leave(node)
            self._in[node] = mine
        known = self._known.get((node, free))
        if known is None or known[0] is not place.offer:
            known = self._known[node, free] = place.offer, estimate(with_free(place.offer, free), self.work)
        numbers = known[1]
        mine.time.put(node, begins + numbers.finish_s * place.stretch + place.way_s)
        if self.costs:
            mine.energy.put(node, numbers.energy_j)
            mine.money.put(node, numbers.cost_usd)


class Places:
    """Call `changed` after a place was altered. The orders are mended when they are next asked for, and made when they
    are first asked for, so that short jobs and small meshes pay nothing for them.
    """

    def __init__(self, places: Iterable[Place] = ()) -> None:
        self._places: dict[NodeId, Place] = {}
        self._classes: dict[tuple[tuple[str, int], ...], _Class] = {}
        self._free: dict[NodeId, int] = {}
        self._room = 0
        self._uncounted: set[NodeId] = set()
        self._gains: set[NodeId] = set()
        self._quickest: dict[tuple[tuple[str, int], ...], NodeId] = {}
        for place in places:
            self.put(place)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places.values())

    def __contains__(self, node: NodeId) -> bool:
        return node in self._places

    def get(self, node: NodeId) -> Place | None:
        return self._places.get(node)

    def put(self, place: Place) -> None:
        self._places[place.node] = place
        self.changed(place.node)

    def drop(self, node: NodeId) -> None:
        if self._places.pop(node, None) is not None:
            self.changed(node)

    def changed(self, node: NodeId) -> None:
        self._uncounted.add(node)
        for kind in self._classes.values():
            kind.stale.add(node)

    def room(self) -> int:
        """Free slots of all places that are not blocked."""
        for node in self._uncounted:
            place = self._places.get(node)
            free = max(0, place.free) if place is not None and not place.offer.blocked else 0
            before = self._free.pop(node, 0)
            self._room += free - before
            if free:
                self._free[node] = free
            if free > before:
                self._gains.add(node)
        self._uncounted.clear()
        return self._room

    def released(self, node: NodeId) -> None:
        """A job that was on its way there is no more: if slots are free, there is one more to be had."""
        place = self._places.get(node)
        if place is not None and place.idle:
            self._gains.add(node)

    def idle(self) -> int:
        """How many places are idle."""
        self.room()
        return len(self._free)

    @property
    def grew(self) -> bool:
        """Whether `gains` has something to tell."""
        self.room()
        return bool(self._gains)

    def gains(self) -> Collection[NodeId]:
        """The nodes that have more room than when this was last asked."""
        self.room()
        gains, self._gains = self._gains, set()
        return gains

    def seconds(self, work: Work) -> float:
        """What such a job takes, about, on the quickest node with its model loaded; 1 if there is none."""
        name = size_class(work)
        place = self._places.get(self._quickest.get(name, NodeId("")))
        if place is None:
            place = min(self._quick(work), key=lambda p: (_alone_s(p, work), p.node), default=None)
            if place is None:
                return 1.0
            if len(self._quickest) >= MAX_CLASSES:
                self._quickest.clear()
            self._quickest[name] = place.node
        return _alone_s(place, work)

    def _quick(self, work: Work) -> Iterable[Place]:
        """Where the quickest is to be found."""
        if len(self) <= FEW:
            return self
        found = (islice(orders.time, FEW) for orders in self.orders(work, costs=False))
        return [self._places[node] for order in found for node in order]

    def orders(self, work: Work, *, costs: bool = True) -> tuple[Orders, Orders]:
        """Of the idle and of the busy places that are not blocked, for work of about this size. Without `costs` only
        the order by time is sure to be there.
        """
        name = size_class(work)
        kind = self._classes.get(name)
        if kind is None or (costs and not kind.costs):
            if kind is None and len(self._classes) >= MAX_CLASSES:
                del self._classes[next(iter(self._classes))]
            kind = self._classes[name] = _Class(dict(work), self._places, costs=costs)
        kind.refresh(self._places)
        return kind.idle, kind.busy


def size_class(work: Work) -> tuple[tuple[str, int], ...]:
    """The same for amounts of about the same size."""
    return tuple((unit, round(math.log(1.0 + min(max(0.0, amount), MOST), CLASS))) for unit, amount in work.items())


def _alone_s(place: Place, work: Work) -> float:
    alone = msgspec.structs.replace(place.offer, free=place.offer.slots, warm=True)
    return estimate(alone, work).finish_s * place.stretch


def with_free(offer: Offer, free: int) -> Offer:
    """The offer with so many free slots, which its crowding follows from."""
    return offer if offer.free == free else msgspec.structs.replace(offer, free=free)
