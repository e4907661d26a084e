"""Jobs that are alike are promised the same. Of some thousand short jobs a second nearly all want the same of the same
few nodes, and between two heartbeats hardly anything changes there but free slots; computing, explaining and ranking
the same bids for each of them would take a fifth of an owner's time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Considered, Job, Offer, Work
from outbid_contracts.policy import Policy
from outbid_node.choosing import Want
from outbid_node.places import Place

MOST_KINDS, MOST_BIDS = 64, 1024
"""Capabilities and models whose bids are kept, and bids of each."""


@dataclass(slots=True)
class Seen:
    """Ranked bids of jobs with this work and policy. One holds while its node offers the same: of another node by its
    standing offer and the free slots this owner believes in, of this one by the offer that it would bid from now.
    """

    work: Work
    policy: Policy
    _bids: dict[tuple[NodeId, int], tuple[tuple[object, ...], Considered]] = field(default_factory=dict)

    def find(self, place: Place, offer: Offer, free: int) -> Considered | None:
        grounds, considered = self._bids.get((place.node, free), _NOTHING)
        return considered if grounds == (offer, place.way_s, place.zone, place.name) else None

    def keep(self, place: Place, offer: Offer, free: int, considered: Considered) -> None:
        if len(self._bids) >= MOST_BIDS:
            self._bids.clear()
        self._bids[place.node, free] = (offer, place.way_s, place.zone, place.name), considered


_NOTHING: tuple[tuple[object, ...], Considered | None] = (), None


class Alike:
    """What was seen last of each kind of work."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str | None], Seen] = {}

    def seen(self, job: Job, want: Want) -> Seen:
        """What jobs before it were promised that holds for this one, too. A deadline, company that is counted on, and
        what a node holds of it from an earlier job are a job's own.
        """
        if want.deadline is not None or want.thrifty or job.prefix:
            return Seen(job.work, job.policy)
        kind = job.capability, job.model
        seen = self._kinds.get(kind)
        if seen is None or seen.policy != job.policy or seen.work != job.work:
            if len(self._kinds) >= MOST_KINDS:
                self._kinds.clear()
            seen = self._kinds[kind] = Seen(job.work, job.policy)
        return seen
