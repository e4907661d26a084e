"""The slots of all nodes as one walk over the waiting jobs gives them out. Pure; the places are not altered."""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice

from outbid_contracts.ids import NodeId
from outbid_contracts.policy import Zone, weights_of
from outbid_node.estimate import Estimate
from outbid_node.options import SHORT_S, Option, Wait, Want, tier_of, waiting_pays, weighed
from outbid_node.places import FEW, Order, Place, Places
from outbid_node.ranking import exclusion

BEST, ALSO = 4, 3
"""Of many nodes so many idle and busy ones are compared for each job: by time, and by other measures that count."""

SCAN = 64
"""Nodes looked at for those, as some do not suit the job."""


def promising(want: Want, places: Places, now: float, best: int = BEST) -> list[Place]:
    """The places to compare for one job: all of a few, else the most promising by standing offers, idle and busy."""
    if len(places) <= FEW:
        return [place for place in places if place.node not in want.excluded]
    return list(Outlook(places, now).promising(want, want.excluded, best))


class Outlook:
    """The slots as one walk goes on giving them out. The places themselves are not altered."""

    def __init__(self, places: Places, now: float) -> None:
        self.now = now
        self._places = places
        self._small = len(places) <= FEW
        self._seats: dict[NodeId, _Seat] = {}
        self._begun = places.idle()
        self._spent = 0

    def any_idle(self) -> bool:
        """Whether an idle slot is left to give out."""
        return self._begun > self._spent

    # -- giving out -----------------------------------------------------------------------------------------------

    def take(self, option: Option | None) -> None:
        """The slot, if there is one, is taken until the job is done."""
        if option is None:
            return
        assert option.place is not None
        seat = self._seat(option.place)
        if option.later:
            seat.frees.pop(0)
        else:
            seat.free -= 1
            self._spent += seat.free == 0
        insort(seat.frees, self.now + option.finish_s)

    def claim(self, node: NodeId | None, count: int) -> None:
        """So many slots of a node are as good as taken; of None it is not known which."""
        place = self._places.get(node) if node is not None else None
        if place is not None and place.free > 0:
            seat = self._seat(place)
            seat.free = max(0, seat.free - count)
            self._spent += seat.free == 0 and place.idle

    def _seat(self, place: Place) -> _Seat:
        seat = self._seats.get(place.node)
        if seat is None:
            seat = self._seats[place.node] = _Seat(place, place.free, place.known_frees(self.now))
        return seat

    # -- looking --------------------------------------------------------------------------------------------------

    def options(self, want: Want) -> tuple[Option | None, Option | None]:
        """The best idle slot and the best later one."""
        found = self._options(want, want.excluded)
        return self._options(want, ()) if want.excluded and found == (None, None) else found

    def still_waits(self, want: Want, gained: Iterable[Place]) -> Wait | None:
        """For what, if that is still to be had and none of the nodes that have more room now is better."""
        wait = want.wait
        if wait is None or wait.best is None or self.now >= wait.until or not self._is_taken(wait.best):
            return None
        waited_s = want.waited_s(self.now)
        for place in gained:
            option = None if place.node in want.excluded else self._evaluate(want, place)
            if option is not None and not option.later and not waiting_pays(option, wait.best, waited_s):
                return None
        return wait

    def _is_taken(self, option: Option) -> bool:
        """Whether its place is there with no free slot, but with one of which is known when it will be."""
        place = option.place
        if place is None or self._places.get(place.node) is not place or place.offer.blocked:
            return False
        seat = self._seat(place)
        return seat.free <= 0 and bool(seat.frees)

    def hopeless(self, want: Want) -> bool:
        """Whether waiting does not help: the policy rules every node out that could take it."""
        return all(_ruled_out(want, self._now(want, place), place.zone) for place in self._places)

    def _options(self, want: Want, excluded: Collection[NodeId]) -> tuple[Option | None, Option | None]:
        if not self._small:
            found = self._best(want, self.promising(want, excluded))
            if found != (None, None):
                return found
        return self._best(want, (place for place in self._places if place.node not in excluded))

    def _best(self, want: Want, places: Iterable[Place]) -> tuple[Option | None, Option | None]:
        idle = later = None
        for place in places:
            option = self._evaluate(want, place)
            if option is None:
                continue
            if option.later:
                if later is None or option.order < later.order:
                    later = option
            elif option.finish_s < SHORT_S and not (want.policy.prefer or want.policy.avoid):
                return option, None
            elif idle is None or option.order < idle.order:
                idle = option
        return idle, later

    def _evaluate(self, want: Want, place: Place) -> Option | None:
        """None if it may not have the job, or it is not known when it could."""
        offer, seat = place.offer, self._seats.get(place.node)
        if offer.blocked:
            return None
        free = place.free if seat is None else seat.free
        if free > 0:
            start_s, numbers = 0.0, want.numbers(place, max(0, offer.slots - free), offer.warm)
        else:
            frees = place.known_frees(self.now) if seat is None else seat.frees
            numbers = want.numbers(place, max(0, offer.slots - 1), True)
            if not frees:
                return None
            start_s = max(0.0, frees[0] - self.now)
        if offer.most_s is not None and numbers.finish_p90_s > offer.most_s:
            return None
        if want.picky and _ruled_out(want, numbers, place.zone):
            return None
        return self._option(want, place, free <= 0, start_s, numbers)

    def _option(self, want: Want, place: Place, later: bool, start_s: float, numbers: Estimate) -> Option:
        stretch, way_s = place.stretch, place.way_s
        return weighed(
            want.policy,
            weights_of(want.policy),
            None if want.deadline is None else want.deadline - self.now,
            place.name,
            place.node,
            later,
            start_s,
            stretch * (start_s + numbers.finish_s) + way_s,
            stretch * (start_s * max(1.0, place.offer.spread) + numbers.finish_p90_s) + way_s,
            stretch * numbers.energy_j,
            numbers.cost_usd,
            stretch,
            place,
        )

    def _now(self, want: Want, place: Place) -> Estimate:
        return want.numbers(place, max(0, place.offer.slots - place.free), place.offer.warm)

    # -- on a large mesh ------------------------------------------------------------------------------------------

    def promising(self, want: Want, excluded: Collection[NodeId], best: int = BEST) -> Iterator[Place]:
        """Of many places the best few idle and busy ones, by each measure that counts."""
        weights, seen = weights_of(want.policy), set(excluded)
        idle, busy = self._places.orders(want.work, costs=bool(weights.per_j or weights.per_usd))
        for orders in (idle, busy):
            yield from self._first(orders.time, want, seen, best)
            if weights.per_j:
                yield from self._first(orders.energy, want, seen, ALSO)
            if weights.per_usd:
                yield from self._first(orders.money, want, seen, ALSO)
        full = (seat for seat in self._seats.values() if seat.free <= 0 and seat.frees and seat.place.node not in seen)
        for seat in nsmallest(BEST, full, key=lambda seat: seat.frees[0]):
            seen.add(seat.place.node)
            yield seat.place
        if want.policy.prefer:
            yield from (p for p in self._places if p.node not in seen and tier_of(want.policy, p.node, p.name) == 0)

    def _first(self, order: Order, want: Want, seen: set[NodeId], most: int) -> Iterator[Place]:
        """The first that are as the walk found them and whose zone the policy allows."""
        found = 0
        for node in islice(order, SCAN):
            place = self._places.get(node)
            if place is None or node in seen or self._is_spent(node) or (want.picky and _wrong_zone(want, place.zone)):
                continue
            seen.add(node)
            yield place
            found += 1
            if found == most:
                return

    def _is_spent(self, node: NodeId) -> bool:
        """It was idle or soon free in the order's eyes, but the walk gave its slots away."""
        seat = self._seats.get(node)
        return seat is not None and seat.free <= 0


@dataclass(slots=True, eq=False)
class _Seat:
    """What is left of a place in a walk: `frees` is sorted, one for each taken slot as far as known."""

    place: Place
    free: int
    frees: list[float]


@dataclass(frozen=True, slots=True)
class _Ruled:
    """As much of a bid as the policy rules out by."""

    zone: Zone
    cost_usd: float


def _ruled_out(want: Want, numbers: Estimate, zone: Zone) -> bool:
    return want.picky and bool(exclusion(_Ruled(zone, numbers.cost_usd), want.policy))


def _wrong_zone(want: Want, zone: Zone) -> bool:
    return bool(exclusion(_Ruled(zone, 0.0), want.policy))
