"""Sees that a daemon died without waiting for its heartbeats, whoever has to do with it.

| who died | who tells | known after |
|---|---|---|
| a daemon on Linux, whose servers end with it | its router says goodbye to all (`mesh.ended.*`) | some 0.05 s |
| a daemon elsewhere, or one with its servers at one blow | its neighbour on the ring, which asks it | RING_S + LATE_S |
| a machine without power, a frozen process | nobody: its heartbeats stop | GONE_AFTER_S |
| the same in a large mesh, where heartbeats are rare | its neighbour, which asks in vain | twice that and RING_S |

What is told is not believed: each node asks for itself, and drops a node only if nobody listens at its address, if it
leaves question after question unanswered, or if its heartbeats stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec
from nats.aio.msg import Msg

from outbid_contracts import subjects
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import LeaseCheck, LeaseState
from outbid_node import pace
from outbid_node.client import Bus, NoResponders
from outbid_node.registry import BEAT_S, GONE_AFTER_S, Peer, Registry

RING_S = pace.BEAT_S
"""How often each node asks its neighbour whether it is there, unless it heard of it meanwhile: in a small mesh its
heartbeats say so (docs/decisions/0020-cost-at-rest.md).
"""

LATE_S = 0.1
"""A heartbeat that comes so late causes no question."""

ALONE_S, LOOKING_S = 0.2, 10.0
"""A node that sees nobody asks who is there so often, for so long after its start or since it saw somebody; then every
RING_S.
"""

SURE_S = 0.02
"""Who has no responders is asked once more after this: interest crosses the mesh in milliseconds."""

ANSWER_S = 0.05
"""A question that meets a server on its way down gets lost: after so long without an answer it is asked again, and has
twice the time, up to a heartbeat's (the way there may be a long one).
"""


NOBODY, SILENT = "does not answer", "fell silent"


class _Ended(msgspec.Struct):
    """What a nats-server says of itself when it stops; `name` is ours: the node's id and what the server is for."""

    name: str = ""


def next_on_ring(me: NodeId, nodes: Iterable[NodeId]) -> NodeId | None:
    """The node whose id follows ours, the last one's being the first: so each is watched by exactly one other."""
    others = sorted(node for node in nodes if node != me)
    return next((node for node in others if node > me), others[0] if others else None)


class Watch:
    """Drops from the registry who is gone. A large mesh that is idle costs every node two small requests a second, a
    small one none. `on_alone` is called again and again while this node sees nobody: the way to the others may open at
    any moment.
    """

    def __init__(self, *, me: NodeId, bus: Bus, registry: Registry, on_alone: Callable[[], None]) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self._on_alone = on_alone
        self._met = time.monotonic()
        self._ask_at = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._checks: dict[NodeId, asyncio.Task[None]] = {}

    async def start(self) -> None:
        await self.bus.subscribe(subjects.SUSPECT, self._on_suspect)
        await self.bus.subscribe(subjects.ENDED_ALL, self._on_ended)

    async def run(self) -> None:
        try:
            while True:
                await asyncio.sleep(self._pause_s(time.monotonic()))
                if self._others():
                    self._met = time.monotonic()
                self.registry.sweep()
                if time.monotonic() >= self._due():
                    self._ask_at = time.monotonic() + self._period_s()
                    if self._asking is None or self._asking.done():
                        self._asking = asyncio.create_task(self._ask_neighbour())
        finally:
            for task in (self._asking, *self._checks.values()):
                if task is not None:
                    task.cancel()

    def _pause_s(self, now: float) -> float:
        """Until the next question, or until the first node would have been silent for too long."""
        silent_at = min((peer.gone_at for peer in self._others()), default=self._ask_at)
        return max(SURE_S, min(self._due(), silent_at) - now)

    def _due(self) -> float:
        """When the next question is, unless the neighbour is heard of before."""
        peer = self.registry.get(node) if (node := self._neighbour()) else None
        return self._ask_at if peer is None else max(self._ask_at, peer.seen + RING_S + LATE_S)

    def _neighbour(self) -> NodeId | None:
        return next_on_ring(self.me, (peer.presence.node for peer in self._others()))

    def _period_s(self) -> float:
        looks = time.monotonic() - self._met < LOOKING_S and not self._others()
        return ALONE_S if looks else pace.left_s()

    def _others(self) -> list[Peer]:
        return [peer for peer in self.registry if peer.presence.node != self.me]

    # -- asking ---------------------------------------------------------------------------------------------------

    async def _ask_neighbour(self) -> None:
        """If it is dead, also the next one, which nobody else watches any more."""
        while (node := self._neighbour()) is not None:
            if not (why := await self._death_of(node)):
                return
            self.bus.post(subjects.SUSPECT, node.encode())
            self.registry.drop(node, why)
            if why == SILENT:
                self._check_silent()
        self._on_alone()

    def _check_silent(self) -> None:
        """Where one fell silent, others may have with it: a cable that was pulled, a switch without power."""
        now = time.monotonic()
        for peer in self._others():
            if now - peer.seen > GONE_AFTER_S:
                self._check(peer.presence.node)

    async def _death_of(self, node: NodeId) -> str:
        """Why it counts as dead: nobody listens at its address, twice, or nothing was heard of it for GONE_AFTER_S of
        asking. Empty if it lives, or was dropped by its heartbeats meanwhile.
        """
        refused, patience_s, begun = 0, ANSWER_S, time.monotonic()
        while node in self.registry and refused < 2:
            try:
                check = LeaseCheck(owner=self.me, attempts=())
                await self.bus.call(subjects.node(node, "lease"), check, LeaseState, timeout_s=patience_s)
                return ""
            except NoResponders:
                refused += 1
                await asyncio.sleep(SURE_S)
            except TimeoutError:
                refused, patience_s = 0, min(2 * patience_s, BEAT_S)
                if self._silent_s(node, begun) > GONE_AFTER_S and self.bus.connected:
                    return SILENT
            except OutbidError:
                return ""
        return NOBODY if refused == 2 and self.bus.connected else ""

    def _silent_s(self, node: NodeId, begun: float) -> float:
        peer = self.registry.get(node)
        return time.monotonic() - max(begun, peer.seen) if peer is not None else 0.0

    # -- being told -----------------------------------------------------------------------------------------------

    async def _on_suspect(self, msg: Msg) -> None:
        self._check(NodeId(msg.data[:64].decode(errors="replace")))

    async def _on_ended(self, msg: Msg) -> None:
        with suppress(msgspec.DecodeError):
            self._check(NodeId(msgspec.json.decode(msg.data, type=_Ended).name.partition("-")[0]))

    def _check(self, node: NodeId) -> None:
        if node != self.me and node in self.registry and node not in self._checks:
            task = self._checks[node] = asyncio.create_task(self._drop_if_dead(node))
            task.add_done_callback(lambda done: self._checks.pop(node, None))

    async def _drop_if_dead(self, node: NodeId) -> None:
        if why := await self._death_of(node):
            self.registry.drop(node, why)
