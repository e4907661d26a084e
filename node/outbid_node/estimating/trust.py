"""How far another node's promises can be relied on: what it promised against what it took, as the owner saw it.

Honest nodes correct themselves, because they learn from the same runs. This is for the others: those that cannot, and
those that lie. The owner lengthens a node's times by the median of what they ran over so far. One overrun is forgiven;
after the second a node that promises a hundredth is believed to take a hundred times as long. Small biases take more
runs to be believed, and all is forgotten with time, so that a node that was repaired gets another chance.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Bid
from outbid_node.estimating.quantiles import median
from outbid_node.ranking import LEAST_S

TOO_SHORT_S = 0.02
"""Attempts promised and done within it tell more about the network than about the node."""

REMEMBERED = 16
HALF_LIFE_RUNS = 4.0
HALF_LIFE_S = 3600.0

HONEST = 1.0
"""So many kept promises each node is credited with."""

DOUBT = 1.5
"""Runs x (log of the overrun)^2 at which half of the overrun is believed: three runs twice over, nine half over. On a
machine where everything is late now and then less would be noise, and honest nodes correct small biases themselves.
"""

MOST_STRETCH = 1e6

LOOK_S = 10.0
"""Between two attempts it changes only with time, and slowly."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """`overrun`: natural logarithm of took over promised."""

    at: float
    overrun: float


@dataclass(slots=True)
class _Record:
    """Of one node and capability. `stretch` is as of `looked`."""

    kept: deque[_Kept] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    stretch: float = 1.0
    looked: float = -math.inf


class Trust:
    """`clock`: seconds, monotonic; looked up late, so that a simulation can put its own in its place."""

    def __init__(self, clock: Callable[[], float] = lambda: time.monotonic()) -> None:
        self._clock = clock
        self._records: dict[tuple[NodeId, str], _Record] = {}

    def note(
        self,
        node: NodeId,
        capability: str,
        promised_s: float,
        took_s: float,
        *,
        done: bool = True,
        ago_s: float = 0.0,
    ) -> None:
        """An attempt ended so long ago. If it was not done, it would have taken longer: that only counts against the
        node if it ran over already.
        """
        if max(promised_s, took_s) < TOO_SHORT_S or (not done and took_s <= promised_s):
            return
        if not (math.isfinite(promised_s) and math.isfinite(took_s)):
            return
        record = self._records.setdefault((node, capability), _Record())
        record.looked = -math.inf
        record.kept.append(_Kept(self._clock() - ago_s, math.log(max(took_s, LEAST_S) / max(promised_s, LEAST_S))))

    def stretch(self, node: NodeId, capability: str) -> float:
        """By how much to lengthen the times that the node bids, at least 1. Those under LEAST_S count as that."""
        record = self._records.get((node, capability))
        if record is None:
            return 1.0
        if (now := self._clock()) - record.looked >= LOOK_S:
            record.looked, record.stretch = now, self._stretch(record.kept, now)
        return record.stretch

    def of_bid(self, capability: str, bid: Bid) -> float:
        """`stretch` of who made it, for ranking."""
        return self.stretch(bid.node, capability)

    def _stretch(self, kept: deque[_Kept], now: float) -> float:
        weighted = [
            (one.overrun, 0.5 ** (newer / HALF_LIFE_RUNS + min(200.0, (now - one.at) / HALF_LIFE_S)))
            for newer, one in enumerate(reversed(kept))
        ]
        middle = median([*weighted, (0.0, HONEST)])
        if middle <= 0:
            return 1.0
        evidence = sum(weight for _, weight in weighted) * middle**2
        return min(MOST_STRETCH, math.exp(middle * evidence / (evidence + DOUBT)))
