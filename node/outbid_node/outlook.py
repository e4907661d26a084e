"""The slots of all nodes as one walk over the waiting jobs gives them out. Pure; the places are not altered."""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice
from math import inf

from outbid_contracts.ids import NodeId
from outbid_contracts.policy import Zone, weights_of
from outbid_node.company import Company, company, full_s, running_on, worth_s
from outbid_node.estimate import Estimate
from outbid_node.options import SHORT_S, Option, Wait, Want, tier_of, waiting_pays, weighed
from outbid_node.places import FEW, Order, Place, Places
from outbid_node.ranking import exclusion

BEST, ALSO = 4, 3
"""Of many nodes so many idle and busy ones are compared for each job: by time, and by other measures that count."""

SCAN = 64
"""Nodes looked at for those, as some do not suit the job."""

IN_HAND = 0.75
"""A thrifty job plans with this part of what is left of its deadline."""

HASTE = 4.0
"""A job with a deadline waits for company only while there is time for so many times its p90 in a full batch."""


def promising(want: Want, places: Places, now: float, best: int = BEST, *, later: bool = True) -> list[Place]:
    """The places to compare for one job: all of a few, else the most promising by standing offers, idle and busy;
    without `later` the idle ones only.
    """
    if len(places) <= FEW:
        return [place for place in places if place.node not in want.excluded]
    return list(Outlook(places, now).promising(want, want.excluded, best, later=later))


class Outlook:
    """The slots as one walk goes on giving them out. The places themselves are not altered."""

    def __init__(self, places: Places, now: float, company_s: float = inf) -> None:
        """`company_s`: until another such job comes, as far as one can tell."""
        self.now = now
        self._company_s = company_s
        self._places = places
        self.large = len(places) > FEW
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

    def last_end(self, place: Place) -> tuple[float, float]:
        """When the node is expected to have done all that it does now, and all that it has been given, too."""
        begun, given = place.known_frees(self.now), self._seat(place).frees
        return begun[-1] if begun else self.now, given[-1] if given else self.now

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

    def gain(self, want: Want, wait: Wait, gained: list[Place]) -> Option | None:
        """The best slot of the nodes that have more room now, if the job waits for just that, or was found a moment ago
        to wait for nothing better. Nodes whose slots were all given out meanwhile are taken off the list.
        """
        options = []
        for place in tuple(gained):
            if self._is_spent(place.node):
                gained.remove(place)
            elif place.node not in want.excluded:
                options.append(self._evaluate(want, place))
        awaited, idle = wait.best, [option for option in options if option is not None and not option.later]
        if awaited is None or not idle:
            return None
        best = min(idle, key=lambda option: option.order)
        if best.place is awaited.place:
            return best if best.score <= awaited.score else None
        waited_s = want.waited_s(self.now)
        if self.now >= wait.until or awaited.place is None or waiting_pays(best, awaited, waited_s):
            return None
        nearer = self._evaluate(want, awaited.place)
        return None if nearer is None or waiting_pays(best, nearer, waited_s) else best

    def still_holds(self, wait: Wait) -> bool:
        """Whether it was found a moment ago, and its place still has no free slot, but one of which is known when it
        will be.
        """
        place = wait.best.place if wait.best is not None else None
        if self.now >= wait.until or place is None:
            return False
        if self._places.get(place.node) is not place or place.offer.blocked:
            return False
        seat = self._seat(place)
        return seat.free <= 0 and bool(seat.frees)

    def hopeless(self, want: Want) -> bool:
        """Whether waiting does not help: the policy rules every node out that could take it."""
        return all(_ruled_out(want, self._now(want, place), place.zone) for place in self._places)

    def _options(self, want: Want, excluded: Collection[NodeId]) -> tuple[Option | None, Option | None]:
        if self.large:
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
            running = max(0, offer.slots - free)
            start_s, numbers = 0.0, want.numbers(place, running, offer.warm)
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
        if want.thrifty and free > 0:
            return self._with_others(want, place, running, numbers)
        return self._option(want, place, free <= 0, start_s, numbers)

    def _with_others(self, want: Want, place: Place, running: int, numbers: Estimate) -> Option:
        """An idle slot by the joules that the job adds there, or by those of a full batch if it may wait for one."""
        ends_s = [frees - self.now for frees in self._seat(place).frees]
        found = company(place.offer, running, numbers, ends_s)
        if found.saves and self._may_gather(want, place, running, found, numbers):
            return self._option(want, place, False, 0.0, numbers._replace(energy_j=found.full_j), found)
        return self._option(want, place, False, 0.0, numbers._replace(energy_j=found.alone_j))

    def _may_gather(self, want: Want, place: Place, running: int, found: Company, numbers: Estimate) -> bool:
        """Whether somebody will come before patience ends, which is when waiting has cost what it was to save; and
        whether the deadline allows it.
        """
        most_s = worth_s(weights_of(want.policy), place.stretch * found.excess_j)
        if self._company_s >= most_s or want.gathered_s(self.now) >= most_s:
            return False
        if want.deadline is None:
            return True
        spread = numbers.finish_p90_s / numbers.finish_s if numbers.finish_s > 0 else 1.0
        return want.deadline - self.now > HASTE * spread * place.stretch * full_s(place.offer, running, numbers)

    def _option(
        self,
        want: Want,
        place: Place,
        later: bool,
        start_s: float,
        numbers: Estimate,
        company: Company | None = None,
    ) -> Option:
        stretch, way_s = place.stretch, place.way_s
        return weighed(
            want.policy,
            weights_of(want.policy),
            self._left_s(want),
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
            company,
        )

    def _left_s(self, want: Want) -> float | None:
        """Of its deadline. Who may wait to save joules keeps some of it in hand."""
        if want.deadline is None:
            return None
        left_s = want.deadline - self.now
        return IN_HAND * left_s if want.thrifty and left_s > 0 else left_s

    def _now(self, want: Want, place: Place) -> Estimate:
        return want.numbers(place, running_on(place), place.offer.warm)

    # -- on a large mesh ------------------------------------------------------------------------------------------

    def promising(
        self, want: Want, excluded: Collection[NodeId], best: int = BEST, *, later: bool = True
    ) -> Iterator[Place]:
        """Of many places the best few idle and busy ones, by each measure that counts."""
        weights, seen = weights_of(want.policy), set(excluded)
        idle, busy = self._places.orders(want.work, costs=bool(weights.per_j or weights.per_usd))
        for orders in (idle, busy) if later else (idle,):
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
