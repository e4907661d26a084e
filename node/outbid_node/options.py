"""What a job wants, and a slot that it could have: now, or later. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import msgspec

from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Bid, Work
from outbid_contracts.policy import Policy, Weights
from outbid_node.company import Company, per_s, thrifty
from outbid_node.estimate import Estimate, estimate, less
from outbid_node.places import Place, with_free
from outbid_node.ranking import remaining, total

SHORT_S = 0.05
"""A job that an idle slot finishes sooner than this takes it, without a look at what may be free later."""

CAUTION = 0.5
"""How far from the median to the p90 a later finish is moved before it is compared with that of an idle slot."""

LEAST_GAIN_S = 0.05
"""Waiting must gain more than this: telling a job that its slot is free takes some milliseconds."""

BENEFIT = 1.3
"""An idle node whose promises run short by no more than this is believed when waiting is weighed against it: a busy
hour makes all nodes overrun, and the least unlucky one is not worth waiting for.
"""


@dataclass(slots=True, eq=False)
class Want:
    """A job as far as choosing goes. `excluded`: nodes where it failed; they count only where there is no other.

    `deadline` is on the owner's clock; `policy.deadline_s` is not looked at. `tag` is whatever the caller needs.
    """

    work: Work
    policy: Policy
    excluded: Collection[NodeId] = ()
    deadline: float | None = None
    tag: Any = None
    since: float | None = None
    """When it first waited though there was an idle slot for it."""
    wait: Wait | None = field(init=False, default=None)
    """What the last walk found, if it is to wait."""
    known: dict[NodeId, tuple[Any, int, Estimate]] = field(init=False, default_factory=dict)
    held: dict[NodeId, Work] | None = field(init=False, default=None)
    """What of the work nodes need not do, as they said when they were asked."""
    thrifty: bool = field(init=False)
    """Whether its policy makes it wait for company, and counts joules by what it adds."""
    gathers: float | None = field(init=False, default=None)
    """When it first waited for company."""
    counted: bool = field(init=False, default=False)
    """It is among the arrivals that are here."""
    share_j: tuple[NodeId, float] | None = field(init=False, default=None)
    """It was let go for that node together with others: what it adds there as one of them."""

    def __post_init__(self) -> None:
        self.thrifty = thrifty(self.policy)

    @property
    def picky(self) -> bool:
        """Whether the policy may rule a node out."""
        policy = self.policy
        return policy.goal == "private" or bool(policy.zone) or policy.max_cost_usd is not None

    def waited_s(self, now: float) -> float:
        """Since it first left an idle slot to others."""
        return 0.0 if self.since is None else now - self.since

    def gathered_s(self, now: float) -> float:
        """Since it first waited for company."""
        return 0.0 if self.gathers is None else now - self.gathers

    def policy_left(self, now: float) -> Policy:
        """The policy with what is left of the deadline."""
        if self.deadline is None or self.policy.deadline_s is None:
            return self.policy
        return remaining(self.policy, now - (self.deadline - self.policy.deadline_s))

    def alone_s(self, place: Place) -> float:
        """Seconds on that node with its model loaded and nothing beside it."""
        return self.numbers(place, 0, True).finish_s

    def without_exclusions(self) -> Want:
        return Want(self.work, self.policy, (), self.deadline)

    def work_for(self, node: NodeId) -> Work:
        """What that node would have to do."""
        return less(self.work, self.held.get(node, {})) if self.held else self.work

    def hear(self, bid: Bid) -> None:
        """Its node said what it holds."""
        known = self.held or {}
        if bid.held != known.get(bid.node, {}):
            self.held = known | {bid.node: bid.held}
            self.known.pop(bid.node, None)

    def numbers(self, place: Place, running: int, warm: bool) -> Estimate:
        """What the node would promise beside so many running jobs; remembered while its offer is the same."""
        offer, kind = place.offer, 2 * running + warm
        known = self.known.get(place.node)
        if known is not None and known[0] is offer and known[1] == kind:
            return known[2]
        asked = with_free(offer, offer.slots - running)
        if warm and not offer.warm:
            asked = msgspec.structs.replace(asked, warm=True)
        numbers = estimate(asked, self.work if self.held is None else self.work_for(place.node))
        self.known[place.node] = (offer, kind, numbers)
        return numbers


@dataclass(slots=True, eq=False)
class Option:
    """A slot that a job could have, now or `later`. Times count from now; `score` is the ranking's, `cautious` the same
    with the times taken with caution, `per_s` what a second adds to it. `late`: its p90 misses the deadline. `tier`: 0
    preferred, 2 avoided. `company`: it is worth waiting for there, and the score counts the joules of a full batch.
    """

    node: NodeId
    name: str
    later: bool
    start_s: float
    finish_s: float
    score: float
    cautious: float
    per_s: float
    late: bool
    tier: int
    stretch: float = 1.0
    place: Place | None = None
    company: Company | None = None

    @property
    def order(self) -> tuple[bool, int, float, NodeId]:
        """As `ranking.rank` sorts; of two that are free later a preferred one does not come first for that."""
        return self.late, max(1, self.tier) if self.later else self.tier, self.score, self.node


@dataclass(slots=True, eq=False)
class Wait:
    """It waits for a slot of `best`; `instead` is the idle one that it leaves to others. Until then this is taken to
    hold, but for nodes that have more room meanwhile. `gathers`: for others to begin with there.
    """

    want: Want
    best: Option | None
    instead: Option | None = None
    until: float = 0.0
    gathers: bool = False

    @property
    def reason(self) -> str:
        """For people."""
        if self.best is None:
            return ""
        if self.gathers:
            return _awaits(self.best)
        told = f"{self.best.name} is expected free in {self.best.start_s:.2g} s"
        if self.instead is None:
            return told
        sooner_s = self.instead.finish_s - self.best.finish_s
        if sooner_s > 0:
            return f"{told} and finishes {sooner_s:.2g} s sooner than {self.instead.name}"
        return f"{told} and is better for this job's policy than {self.instead.name}"


def _awaits(best: Option) -> str:
    if best.company is None:
        return f"waits for company on {best.name}"
    alone_j, full_j, of = best.company
    return f"waits for company on {best.name}: alone {alone_j:.3g} J, as one of {of} {full_j:.2g} J"


def pick(idle: Option | None, later: Option | None, waited_s: float = 0.0) -> Option | None:
    """The better of the best idle slot and the best that is free later."""
    if idle is None or later is None:
        return idle or later
    return later if waiting_pays(idle, later, waited_s) else idle


def waiting_pays(idle: Option, later: Option, waited_s: float = 0.0) -> bool:
    """Wishes for a node order the bids, but make no job wait: that is decided by score.

    What the job has `waited_s` already instead of taking an idle slot counts as if it were still to come: where the
    expected moment slips as time goes on, patience ends when waiting has cost as much as it was to gain.
    """
    if idle.finish_s < SHORT_S or idle.tier == 0 or later.tier > idle.tier:
        return False
    return later.cautious + waited_s * later.per_s + LEAST_GAIN_S < idle.score / min(idle.stretch, BENEFIT)


def weighed(
    policy: Policy,
    weights: Weights,
    left_s: float | None,
    name: str,
    node: NodeId,
    later: bool,
    start_s: float,
    finish_s: float,
    p90_s: float,
    energy_j: float,
    cost_usd: float,
    stretch: float,
    place: Place | None = None,
    company: Company | None = None,
) -> Option:
    score = cautious = total(weights, left_s, finish_s, p90_s, energy_j, cost_usd)
    if later:
        more_s = CAUTION * (p90_s - finish_s)
        cautious = total(weights, left_s, finish_s + more_s, p90_s + more_s, energy_j, cost_usd)
    late = left_s is not None and p90_s > left_s
    tier = tier_of(policy, node, name) if policy.prefer or policy.avoid else 1
    return Option(
        node, name, later, start_s, finish_s, score, cautious, per_s(weights), late, tier, stretch, place, company
    )


def tier_of(policy: Policy, node: NodeId, name: str) -> int:
    if node in policy.prefer or name in policy.prefer:
        return 0
    return 2 if node in policy.avoid or name in policy.avoid else 1
