"""How many messages go over the bus for a job: a client that hears all subjects counts them by kind.

It is there only while it counts, because its interest in everything makes every server send everything to it.
"""

from __future__ import annotations

from collections import Counter
from types import TracebackType

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from outbid_bench.nodes import Node

REQUEST, CFP, AWARD, SETTLE, EVENT = "request", "cfp", "award", "settle", "event"
OF_JOBS = (REQUEST, CFP, AWARD, SETTLE, EVENT)
"""Kinds that a job causes; each but the last is answered. The rest goes on without jobs: heartbeats, and the watch over
neighbours and leases."""

_INBOX = "_INBOX"


class Spy:
    """`async with` it. Counts from when it is entered."""

    def __init__(self, node: Node) -> None:
        """`node`: where it connects; with its credentials it may hear everything."""
        self._node = node
        self._nc = Client()
        self._asked: dict[str, str] = {}
        self._replies: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()

    async def __aenter__(self) -> Spy:
        local = await self._node.until_up()
        self._nc = await nats.connect(local.url, user_credentials=self._node.creds)
        await self._nc.subscribe(">", cb=self._on_message)
        await self._nc.flush()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._nc.close()

    async def counted(self) -> Counter[str]:
        """Messages by kind so far; replies as `<kind> reply`."""
        await self._nc.flush()
        found = Counter(self._kinds)
        for reply, count in self._replies.items():
            found[f"{self._asked.get(reply, 'other')} reply"] += count
        return found

    async def _on_message(self, msg: Msg) -> None:
        if msg.subject.startswith(_INBOX):
            self._replies[msg.subject] += 1
            return
        kind = kind_of(msg.subject)
        self._kinds[kind] += 1
        if msg.reply:
            self._asked[msg.reply] = kind


def kind_of(subject: str) -> str:
    """What a message is for, by its subject; heartbeats and what is not known are `other`."""
    words = subject.split(".")
    match words:
        case ["mesh", "node", _, ("cfp" | "award" | "settle" | "lease") as verb]:
            return verb
        case ["mesh", "job", _, "event"]:
            return EVENT
        case ["mesh", "test", _]:
            return REQUEST
    return "other"


def of_jobs(counted: Counter[str]) -> dict[str, int]:
    """Without what goes on anyway; in the order in which a job causes them."""
    wanted = [name for kind in OF_JOBS for name in (kind, f"{kind} reply")]
    return {name: counted[name] for name in wanted if counted[name]}
