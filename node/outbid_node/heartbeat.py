"""What keeps a node's picture of the mesh true: presence, the watch over a neighbour, and the watch over leases."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from nats.aio.msg import Msg

from outbid_contracts import subjects
from outbid_contracts.codec import decode, encode
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import Capacity, LeaseCheck, LeaseState, Presence
from outbid_node.client import Bus, NoResponders
from outbid_node.owned import OwnedJob
from outbid_node.owner import Owner
from outbid_node.registry import BEAT_S, MISSED_BEATS, Registry

log = logging.getLogger(__name__)

LEASE_CHECK_S = 0.25
"""How often an owner asks after its attempts on other nodes: a killed daemon is noticed within this time."""

WATCH_S = 0.2
"""How often each node asks its neighbour whether it is there, and looks for nodes whose heartbeats stopped."""

SURE_S = 0.02
"""A neighbour without responders is asked once more after this: interest crosses the mesh in milliseconds."""

COALESCE_S = 0.02
"""Changes within this time go out as one presence message."""


class PresenceKeeper:
    """Publishes this node's presence each second and on change, and takes in the others'."""

    def __init__(self, *, me: NodeId, bus: Bus, registry: Registry, describe: Callable[[], Presence]) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self._describe = describe
        self._wake = asyncio.Event()
        self.on_beat: list[Callable[[], None]] = []
        self._watch = NeighbourWatch(me=me, bus=bus, registry=registry, on_alone=self.hello)

    async def start(self) -> None:
        await self._watch.start()
        await self.bus.subscribe(subjects.PRESENCE_ALL, self._on_presence)
        await self.bus.subscribe(subjects.HELLO, self._on_hello)
        await self.bus.subscribe(subjects.CAPACITY_ALL, self._on_capacity)
        self.publish()
        self.hello()

    def hello(self) -> None:
        """Ask everybody else to say who they are now."""
        self.bus.post(subjects.HELLO, self.me.encode())

    def touch(self) -> None:
        """Something a bid rests on changed; it goes out within COALESCE_S."""
        self._wake.set()

    def publish(self) -> None:
        presence = self._describe()
        self.registry.receive(presence) if presence.state != "leaving" else None
        self.bus.post(subjects.presence(self.me), encode(presence))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as both:
            both.create_task(self._beat())
            both.create_task(self._watch.run())

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        beat = loop.time()
        while True:
            beat = max(beat + BEAT_S, loop.time())
            while not self._wake.is_set() or loop.time() < beat:
                try:
                    async with asyncio.timeout_at(beat):
                        await self._wake.wait()
                        await asyncio.sleep(COALESCE_S)
                except TimeoutError:
                    break
                self._wake.clear()
                self.publish()
            self._wake.clear()
            self.publish()
            for callback in self.on_beat:
                callback()

    async def _on_presence(self, msg: Msg) -> None:
        try:
            presence = decode(msg.data, Presence)
        except OutbidError as error:
            log.warning("unreadable presence: %s", error, extra={"action": "presence_unreadable"})
            return
        if presence.node == self.me:
            return
        if presence.node not in self.registry and presence.state != "leaving":
            self.touch()  # it is new to us, so we are probably new to it
        self.registry.receive(presence)

    async def _on_hello(self, msg: Msg) -> None:
        if msg.data != self.me.encode():
            self.touch()

    async def _on_capacity(self, msg: Msg) -> None:
        try:
            capacity = decode(msg.data, Capacity)
        except OutbidError as error:
            log.warning("unreadable capacity: %s", error, extra={"action": "capacity_unreadable"})
            return
        self.registry.note_free(capacity.node, capacity.capability, capacity.model, capacity.free)


def next_on_ring(me: NodeId, nodes: Iterable[NodeId]) -> NodeId | None:
    """The node whose id follows ours, the last one's being the first: so each is watched by exactly one other."""
    others = sorted(node for node in nodes if node != me)
    return next((node for node in others if node > me), others[0] if others else None)


class NeighbourWatch:
    """Sees that a daemon died without waiting for its heartbeats, whoever has to do with it.

    Each node asks one other, its neighbour on the ring of ids: an idle mesh of any size costs every node the same few
    small requests a second. No responders: it tells all, and they ask for themselves before they believe it. A node
    that sees nobody calls `on_alone` at the same pace: the way to the others may open at any moment.
    """

    def __init__(self, *, me: NodeId, bus: Bus, registry: Registry, on_alone: Callable[[], None]) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self._on_alone = on_alone
        self._asking: asyncio.Task[None] | None = None
        self._checks: dict[NodeId, asyncio.Task[None]] = {}

    async def start(self) -> None:
        await self.bus.subscribe(subjects.SUSPECT, self._on_suspect)

    async def run(self) -> None:
        try:
            while True:
                await asyncio.sleep(WATCH_S)
                self.registry.sweep()
                if self._asking is None or self._asking.done():
                    self._asking = asyncio.create_task(self._ask_neighbour())
        finally:
            for task in (self._asking, *self._checks.values()):
                if task is not None:
                    task.cancel()

    async def _ask_neighbour(self) -> None:
        """If it is dead, also the next one, which nobody else watches any more."""
        while (node := next_on_ring(self.me, (peer.presence.node for peer in self.registry))) is not None:
            if not await self._is_dead(node):
                return
            self.bus.post(subjects.SUSPECT, node.encode())
            self.registry.drop(node, "does not answer")
        self._on_alone()

    async def _on_suspect(self, msg: Msg) -> None:
        node = NodeId(msg.data[:64].decode(errors="replace"))
        if node != self.me and node in self.registry and node not in self._checks:
            task = self._checks[node] = asyncio.create_task(self._check(node))
            task.add_done_callback(lambda done: self._checks.pop(node, None))

    async def _check(self, node: NodeId) -> None:
        if await self._is_dead(node):
            self.registry.drop(node, "does not answer")

    async def _is_dead(self, node: NodeId) -> bool:
        """Whether nobody listens at its address, twice. Silence proves nothing: heartbeats decide about that."""
        for pause_s in (0.0, SURE_S):
            await asyncio.sleep(pause_s)
            try:
                check = LeaseCheck(owner=self.me, attempts=())
                await self.bus.call(subjects.node(node, "lease"), check, LeaseState, timeout_s=BEAT_S)
                return False
            except NoResponders:
                continue
            except (OutbidError, TimeoutError):
                return False
        return self.bus.connected


class LeaseKeeper:
    """Asks the nodes that run this owner's attempts whether they still do.

    A node without responders is dead at once; one that does not answer for MISSED_BEATS seconds is frozen or cut off;
    an
    attempt its node does not know is lost. Being asked is what tells the node that its owner lives.
    """

    def __init__(self, *, me: NodeId, bus: Bus, registry: Registry, owner: Owner) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self.owner = owner
        self._asking: set[NodeId] = set()
        self._missed: dict[NodeId, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        while True:
            await self.owner.busy.wait()
            await asyncio.sleep(LEASE_CHECK_S)
            for node, jobs in self.owner.leased().items():
                if node not in self._asking:
                    task = asyncio.create_task(self._check(node, jobs))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

    async def _check(self, node: NodeId, jobs: list[OwnedJob]) -> None:
        now = time.monotonic()
        waits = node not in self.registry
        asked: dict[JobId, int] = {
            owned.job.id: owned.number
            for owned in jobs
            if owned.state == "running" and not (waits and now < owned.lost_not_before)
        }
        if not asked:
            return
        self._asking.add(node)
        try:
            check = LeaseCheck(owner=self.me, attempts=tuple(asked.items()))
            subject = subjects.node(node, "lease")
            state: LeaseState = await self.bus.call(subject, check, LeaseState, timeout_s=BEAT_S)
            self._missed.pop(node, None)
            self.owner.leases_answered(asked, state)
        except NoResponders:
            self._gone(node, "does not answer")
        except TimeoutError:
            self._missed[node] = self._missed.get(node, 0) + 1
            if self._missed[node] >= MISSED_BEATS:
                self._gone(node, "fell silent")
        except OutbidError as error:
            log.warning("lease check of %s: %s", node, error, extra={"action": "lease_check_failed"})
        finally:
            self._asking.discard(node)

    def _gone(self, node: NodeId, why: str) -> None:
        self._missed.pop(node, None)
        if self.bus.connected:
            self.registry.drop(node, why)
            self.owner.lose_node(node, why)
