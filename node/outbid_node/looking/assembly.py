"""Looking on as a part of a node: hears who wants what, and switches the tellers on and off."""

from __future__ import annotations

import logging
import time
from typing import Any

from nats.aio.msg import Msg

from outbid_contracts import subjects
from outbid_contracts.admin import LogsReply, LogsRequest
from outbid_contracts.codec import Format, decode, encode, format_of
from outbid_contracts.errors import InvalidRequest, OutbidError
from outbid_contracts.ids import NodeId
from outbid_contracts.live import AuctionHeld, LogLine, Watch
from outbid_node.auctioned import Auction
from outbid_node.client import Bus
from outbid_node.looking.log_tap import LogTap
from outbid_node.looking.rate import Rate
from outbid_node.looking.watchers import Watchers, number_of
from outbid_node.micro import Request, Service
from outbid_node.owned import OwnedJob
from outbid_node.owner import Owner
from outbid_node.worker import Worker

log = logging.getLogger(__name__)

AUCTIONS_S = 200
"""As many are told a second: more than anybody can look at, and a tenth of what a busy owner holds."""

EVENTS_S = 500
"""Of jobs too short to be told of when nobody looks on; all of the longer ones are told always."""


class Looking:
    """`sweep` is called each second."""

    def __init__(self, *, me: NodeId, name: str, bus: Bus, owner: Owner, worker: Worker, tap: LogTap) -> None:
        self.me = me
        self.unreadable = 0
        self._bus, self._owner, self._worker, self._tap = bus, owner, worker, tap
        self._watchers = Watchers()
        self._auctions = Rate(AUCTIONS_S)
        self._events = Rate(EVENTS_S)
        self._complaints = Rate(1)
        tap.node, tap.name_of_node = me, name
        tap.send = self._send_line

    async def start(self) -> None:
        await self._bus.subscribe(subjects.WATCH, self._on_watch)

    def register(self, service: Service) -> None:
        service.add("admin-logs", subjects.admin(self.me, "logs"), self.logs, queue=str(self.me))

    async def _on_watch(self, msg: Msg) -> None:
        try:
            watch = decode(msg.data, Watch, _format(msg))
        except OutbidError as error:
            self.unreadable += 1
            if self._complaints.take():
                log.info("unreadable watch: %s", error.message[:200], extra={"action": "watch_unreadable"})
            return
        self._watchers.heard(watch, time.monotonic())
        self.sweep()

    def sweep(self) -> None:
        """Tell what is wanted now, and no more."""
        now = time.monotonic()
        self._tap.wanted_from = self._watchers.logs(now)
        self._owner.placer.on_auction = self._tell_auction if self._watchers.auctions(now) else None
        jobs = self._watchers.jobs(now)
        self._owner.tells_short = self._events.take if jobs else None
        self._worker.tells_progress = jobs

    def _tell_auction(self, owned: OwnedJob, auction: Auction) -> None:
        if not self._auctions.take():
            return
        job = owned.job
        told = AuctionHeld(
            job=job.id,
            owner=self.me,
            capability=job.capability,
            model=job.model,
            policy=job.policy,
            sheet=auction.sheet(),
            told_ms=time.time_ns() // 1_000_000,
            arrived_ms={str(node): round(rtt_s * 1000, 3) for node, rtt_s in auction.arrived_s.items()},
            left_out=self._auctions.left_out(),
        )
        self._bus.post(subjects.auction(self.me), encode(told))

    def _send_line(self, line: LogLine) -> None:
        self._bus.post(subjects.log(self.me), encode(line))

    async def logs(self, request: Request) -> None:
        if request.read_format() is Format.TEXT and request.data:
            raise InvalidRequest('this takes a JSON object, e.g. {"level": "warning"}')
        asked: LogsRequest = decode(request.data or b"{}", LogsRequest, request.format if request.data else Format.JSON)
        request.respond(LogsReply(node=self.me, lines=tuple(self._tap.last(number_of(asked.level), asked.limit))))


def _format(msg: Msg) -> Format:
    """Raises InvalidRequest for text."""
    headers: dict[str, Any] = msg.headers or {}
    if (found := format_of(headers.get("Content-Type"), msg.data)) is Format.TEXT:
        raise InvalidRequest("it is text")
    return found
