"""One auction as its owner keeps it, and the bid sheet that it tells of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec

from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import BidSheet, Considered, Decline
from outbid_contracts.policy import Policy
from outbid_node.bidding import BID_TTL_MS
from outbid_node.ranking import Added, explain


@dataclass(slots=True)
class Auction:
    """The outcome: bids ranked, best first (excluded ones last), and the declines. `refused`: nodes whose bid did not
    hold.
    """

    job: JobId
    attempt: int
    how: str = "asked"
    opened_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    opened: float = field(default_factory=lambda: time.monotonic())
    took_ms: float = 0.0
    asked: int = 0
    ranked: list[Considered] = field(default_factory=list)
    declines: list[Decline] = field(default_factory=list)
    refused: set[NodeId] = field(default_factory=set)
    winner: NodeId | None = None
    waited_s: float = 0.0
    """What the job waited before it, and for what."""
    waited_for: str = ""
    aim: NodeId | None = None
    """It was for the slot of that node that the job was let go for, and saw no busy nodes."""
    given: dict[NodeId, int] = field(default_factory=dict)
    """How many awards this owner had sent to those that were asked, when they were asked."""
    arrived_s: dict[NodeId, float] = field(default_factory=dict)
    """How long after they were asked the nodes' answers were there."""
    added: Added | None = None
    """Of a thrifty job: the joules that count instead of a bid's."""
    _why: str = ""
    _judged: tuple[list[Considered], Policy] | None = None

    @property
    def why(self) -> str:
        """Made when it is first read: of most short jobs nobody reads it."""
        if not self._why and self._judged is not None:
            self._why = explain(*self._judged)
        return self._why

    @why.setter
    def why(self, text: str) -> None:
        self._why = text

    def judged(self, policy: Policy) -> None:
        """They are ranked now, by that policy; what is added later changes nothing about why."""
        self._why, self._judged = "", (self.ranked[:2], policy) if self.ranked else None

    @property
    def able(self) -> list[Considered]:
        """The bids that could be awarded now."""
        return [c for c in self.ranked if not c.excluded and not c.bid.later]

    @property
    def waiting_may_help(self) -> bool:
        return any(d.temporary for d in self.declines) or any(c.bid.later and not c.excluded for c in self.ranked)

    def bids(self) -> tuple[Considered, ...]:
        """As they were ranked, best first. What was worked out for a job like this one is told as if for this one."""
        return tuple(c if c.bid.job == self.job else _for_job(c, self.job, self.opened_ms) for c in self.ranked)

    def sheet(self) -> BidSheet:
        return BidSheet(
            attempt=self.attempt,
            how=self.how,  # type: ignore[arg-type]
            opened_ms=self.opened_ms,
            took_ms=self.took_ms,
            asked=self.asked,
            bids=self.bids(),
            declines=tuple(self.declines),
            winner=self.winner,
            why=self.why,
            waited_s=self.waited_s,
            waited_for=self.waited_for,
        )


def _for_job(considered: Considered, job: JobId, opened_ms: int) -> Considered:
    bid = msgspec.structs.replace(considered.bid, job=job, expires_ms=opened_ms + BID_TTL_MS)
    return msgspec.structs.replace(considered, bid=bid)
