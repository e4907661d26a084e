"""What nodes tell while somebody looks on: `mesh.watch` asks for it, and it ends by itself.

Presence and the events of durable jobs go out anyway. Those of interactive jobs, auctions and log lines would cost
every job something and nobody reads them most of the time, so a node publishes them for WATCH_FOR_S after the last
`Watch` it heard. All of this is MessagePack, but the events of jobs, which are JSON.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import BidSheet, Message
from outbid_contracts.policy import Policy

WATCH_FOR_S = 10.0
WATCH_EVERY_S = 4.0
"""How often a watcher repeats itself: two may be lost."""

LogLevel = Literal["debug", "info", "warning", "error", "critical"]


class Watch(Message, frozen=True, kw_only=True):
    """`mesh.watch`: tell the events of all jobs, auctions, and log lines from `logs` up, for a while. Log lines reach
    administrators only.
    """

    jobs: bool = False
    auctions: bool = False
    logs: LogLevel | None = None


class AuctionHeld(Message, frozen=True, kw_only=True):
    """`mesh.auction.<owner>`: one auction with every bid, every decline and the choice. Prompts are not in it.

    `told_ms` (Unix) is when; `arrived_ms` has, by node, how long after the opening its answer was there. `left_out`:
    auctions of this owner that were not told before it, because there were too many.
    """

    job: JobId
    owner: NodeId
    capability: str
    model: str | None = None
    policy: Policy = Policy()
    sheet: BidSheet
    told_ms: int = 0
    arrived_ms: dict[str, float] = msgspec.field(default_factory=dict)
    left_out: int = 0


class LogLine(Message, frozen=True, kw_only=True):
    """`mesh.log.<node>`: one line of that daemon's log. `dropped`: lines left out before it, because there were more
    than a face can show.
    """

    node: NodeId
    name: str
    time_ms: int
    level: LogLevel
    action: str
    text: str
    fields: dict[str, Any] = msgspec.field(default_factory=dict)
    dropped: int = 0
