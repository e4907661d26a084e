"""When jobs that wait for company begin together. Pure, but that a job remembers since when it gathers.

It is the problem of the TCP acknowledgement (Dooly, Goldman and Scott 1998): waiting costs each job a little with every
second, beginning costs all of them something once. They begin as soon as they have waited, taken together, for what
beginning now would waste: that is at most twice as dear as knowing who comes next, and without knowing it no rule that
draws no lots can promise less. With even arrivals it is the control limit of batch service (Deb and Serfozo 1973).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from outbid_contracts.ids import NodeId
from outbid_contracts.policy import weights_of
from outbid_node.company import full_s, running_on, worth_s
from outbid_node.options import Option, Wait, Want, pick
from outbid_node.outlook import Outlook
from outbid_node.places import Place


@dataclass(slots=True)
class Group:
    """Jobs that would share a node, in their order. Some find no slot there until others are done."""

    place: Place
    members: list[tuple[Want, Option]] = field(default_factory=list)

    def goes(self, outlook: Outlook) -> bool:
        if all(best.company is None for _, best in self.members):
            return True
        waited_j = sum(_waited_j(want, outlook.now) for want, _ in self.members)
        return waited_j >= self.added_j(outlook) - sum(self._full_j())

    def added_j(self, outlook: Outlook) -> float:
        """Joules that they add together; the walk has given them their slots."""
        begun, ends = outlook.last_end(self.place)
        return self.place.offer.watts * (ends - begun)

    def shares_j(self, outlook: Outlook) -> list[float]:
        """Of that, by their sizes; before stretching, like a bid's numbers."""
        full_j = self._full_j()
        each = self.added_j(outlook) / max(1e-9, sum(full_j)) / self.place.stretch
        return [each * joules for joules in full_j]

    def _full_j(self) -> list[float]:
        place, offer = self.place, self.place.offer
        running = running_on(place)
        numbers = (want.numbers(place, running, offer.warm) for want, _ in self.members)
        return [place.stretch * offer.watts * full_s(offer, running, n) / max(1, offer.slots) for n in numbers]


def gather(wants: Iterable[Want], outlook: Outlook) -> tuple[list[tuple[Want, Place]], list[Wait]]:
    """(who goes now, and where; who waits on) of those that may wait for company."""
    go: list[tuple[Want, Place]] = []
    waits: list[Wait] = []
    for group in _groups(wants, outlook, waits):
        goes, shares_j = group.goes(outlook), group.shares_j(outlook)
        for (want, best), share_j in zip(group.members, shares_j, strict=True):
            if goes and not best.later:
                want.wait, want.share_j = None, (group.place.node, share_j)
                go.append((want, group.place))
            else:
                want.wait = Wait(want, best, gathers=not goes)
                waits.append(want.wait)
    return go, waits


def _groups(wants: Iterable[Want], outlook: Outlook, waits: list[Wait]) -> Sequence[Group]:
    """By the node where each is best off, with those before it there."""
    groups: dict[NodeId, Group] = {}
    for want in wants:
        if want.gathers is None:
            want.gathers = outlook.now
        idle, later = outlook.options(want)
        best = pick(idle, later, want.waited_s(outlook.now))
        if best is None:
            want.wait = Wait(want, None)
            waits.append(want.wait)
            continue
        assert best.place is not None
        groups.setdefault(best.node, Group(best.place)).members.append((want, best))
        outlook.take(best)
    return list(groups.values())


def _waited_j(want: Want, now: float) -> float:
    """What it has waited for company, in joules."""
    waited_s = want.gathered_s(now)
    second = worth_s(weights_of(want.policy), 1.0)
    return waited_s / second if second > 0 else 0.0
