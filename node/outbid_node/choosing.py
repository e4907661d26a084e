"""Which waiting job goes where, and when: look-ahead list scheduling over idle and busy nodes. Pure.

A job that takes any idle slot at once may sit on a Raspberry Pi for a minute while the fast machine was busy for two
seconds more. So each job is compared with both: the idle slots, and the taken ones by when they are expected to be free
(`Offer.frees_s`). The jobs that wait are walked in their order, each is given the slot where it is best off, and that
slot is from then on free only after it (minimum completion time; Ibarra and Kim 1977). Who was given an idle slot goes
now. The others wait at their owner: nothing is reserved anywhere, and with the next change all is decided anew.

Waiting rests on two estimates, of what runs there now and of the job itself, so it must pay with both taken with
caution (`CAUTION`). Between equal nodes it never does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import exp, inf, log
from statistics import NormalDist
from types import MappingProxyType

from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Considered
from outbid_contracts.policy import Policy, weights_of
from outbid_node.company import Arrivals
from outbid_node.gathering import gather
from outbid_node.options import CAUTION, Option, Wait, Want, pick, waiting_pays, weighed
from outbid_node.outlook import Outlook, promising
from outbid_node.places import FEW, Place, Places

__all__ = ["CAUTION", "LOOK_AHEAD", "Plan", "Wait", "Want", "choose", "left_s", "plan", "promising", "waits_for"]

LOOK_AHEAD, OF_MANY = 32, 12
"""Jobs looked at in one walk, which bounds its cost; on a large mesh fewer, as each takes longer to compare there and
looking is called for more often. Those behind them wait without a look.
"""

HOLDS_S, HOLDS = 0.25, 0.1
"""That waiting is best for a job holds for so long, and this part of the time until its slot is expected to be free, as
far as no node has more room meanwhile.
"""

MOST_GAINS = 6
"""With more nodes that have more room than before, all is looked at anew."""

_NORMAL = NormalDist()
_P90 = _NORMAL.inv_cdf(0.9)


@dataclass(slots=True)
class Plan:
    """`go`: in their order, with the place; None: no node that may take it is known, so it goes to hear that.

    `looked` jobs of the queue were looked at. `waits` are those among them that do not go.
    """

    go: list[tuple[Want, Place | None]] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    looked: int = 0


def plan(
    queue: Iterable[Want],
    places: Places,
    now: float,
    *,
    on_way: Mapping[NodeId | None, int] = MappingProxyType({}),
    most: int | None = None,
    gains: Collection[NodeId] | None = None,
    arrivals: Arrivals | None = None,
) -> Plan:
    """Walk the queue. `on_way`: slots that jobs let go before are on their way to; the places do not know of them yet.
    `gains`: the nodes that have more room than at the last walk. A job that was looked at a moment ago (`Wait.until`)
    is only compared with those; on a large mesh it takes what it waits for, or better, without a look at the others.
    None: look at all anew. `arrivals`: of such jobs; None: nobody else will come.

    Jobs that wait for company are looked at last, for they take no slot from the others.

    Pure, but that a job remembers what it waits for, and since when it waits though it could have gone.
    """
    made, aside = Plan(), list[Want]()
    outlook = Outlook(places, now, arrivals.mean_s(now) if arrivals is not None else inf)
    gained = _known(gains, places)
    for node, count in on_way.items():
        outlook.claim(node, count)
    for want in islice(queue, most or look_ahead(places)):
        if not outlook.any_idle():
            break
        made.looked += 1
        if want.thrifty and arrivals is not None:
            _count(want, arrivals, now)
        wait = want.wait if gained is not None else None
        option = outlook.gain(want, wait, gained) if wait is not None and gained else None
        if option is not None and outlook.large and not want.thrifty:
            made.go.append((want, option.place))
            outlook.take(option)
        elif option is None and wait is not None and outlook.still_holds(wait):
            made.waits.append(wait)
            outlook.take(wait.best)
        else:
            _give(want, outlook, made, aside)
    if aside:
        go, waits = gather(aside, outlook)
        made.go += go
        made.waits += waits
    return made


def look_ahead(places: Places) -> int:
    """How many jobs of a queue are looked at."""
    return LOOK_AHEAD if len(places) <= FEW else OF_MANY


def _count(want: Want, arrivals: Arrivals, now: float) -> None:
    if not want.counted:
        want.counted = True
        arrivals.came(now)


def _give(want: Want, outlook: Outlook, made: Plan, aside: list[Want]) -> None:
    """The job has the slot where it is best off, as things are now; or is put `aside`, for it may wait for company."""
    now = outlook.now
    idle, later = outlook.options(want)
    best = pick(idle, later, want.waited_s(now))
    want.wait = want.share_j = None
    if best is not None and best.company is not None:
        aside.append(want)
        return
    if best is None and outlook.hopeless(want):
        made.go.append((want, None))
    elif best is None or best.later:
        if idle is not None and want.since is None:
            want.since = now
        want.wait = Wait(want, best, idle, now + (max(HOLDS_S, HOLDS * best.start_s) if best is not None else 0.0))
        made.waits.append(want.wait)
    else:
        made.go.append((want, best.place))
    outlook.take(best)


def _known(gains: Collection[NodeId] | None, places: Places) -> list[Place] | None:
    """Those of them that still offer such work; None if all is to be looked at anew."""
    if gains is None or len(gains) > MOST_GAINS:
        return None
    return [place for node in gains if (place := places.get(node)) is not None]


def choose(ranked: Sequence[Considered], policy: Policy, waited_s: float = 0.0) -> Considered | None:
    """The bid to award, or the later one to wait for, among ranked ones; None if none fits the policy."""
    able = [considered for considered in ranked if not considered.excluded]
    idle = next((c for c in able if not c.bid.later), None)
    later = min((c for c in able if c.bid.later), key=lambda c: as_option(c, policy).order, default=None)
    if idle is None or later is None:
        return idle or later
    return later if waiting_pays(as_option(idle, policy), as_option(later, policy), waited_s) else idle


def waits_for(best: Considered, able: Sequence[Considered], want: Want) -> Wait:
    """The job waits for that bid's slot, though it could have one of `able`, best first."""
    policy = want.policy
    return Wait(want, as_option(best, policy), as_option(able[0], policy) if able else None)


def as_option(considered: Considered, policy: Policy) -> Option:
    bid, stretch = considered.bid, considered.stretch
    energy_j = bid.energy_j if considered.added_j is None else considered.added_j
    return weighed(
        policy,
        weights_of(policy),
        policy.deadline_s,
        considered.name,
        bid.node,
        bid.later,
        stretch * bid.start_s,
        stretch * bid.finish_s,
        stretch * bid.finish_p90_s,
        stretch * energy_j,
        bid.cost_usd,
        stretch,
    )


def left_s(p50_s: float, p90_s: float, elapsed_s: float) -> float:
    """Seconds that a job which should take `p50_s` is still expected to take after `elapsed_s`: the median of a
    log-normal time given that it is not over yet. The longer it overruns, the longer it may still take.
    """
    if p50_s <= 0:
        return 0.0
    if elapsed_s <= 1e-6 * p50_s:
        return p50_s
    sigma = min(3.0, max(0.05, log(max(1.0, p90_s / p50_s)) / _P90))
    gone = _NORMAL.cdf(log(elapsed_s / p50_s) / sigma)
    if gone > 0.999:  # far beyond all it was promised: as long again as half of that
        return elapsed_s / 2
    return max(0.0, p50_s * exp(sigma * _NORMAL.inv_cdf((1 + gone) / 2)) - elapsed_s)
