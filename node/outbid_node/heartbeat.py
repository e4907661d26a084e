"""What keeps a node's picture of the mesh true: presence, and the watch over leases (`watch` sees who dies)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable

from nats.aio.msg import Msg

from outbid_contracts import subjects
from outbid_contracts.codec import decode, encode
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import Capacity, LeaseCheck, LeaseState, Presence
from outbid_node import pace
from outbid_node.client import Bus, NoResponders
from outbid_node.owned import OwnedJob
from outbid_node.owner import Owner
from outbid_node.registry import BEAT_S, MISSED_BEATS, Registry
from outbid_node.watch import Watch

log = logging.getLogger(__name__)

LEASE_CHECK_S = 0.25
"""How often an owner asks after its attempts on other nodes: a killed daemon is noticed within this time."""

OPEN = 4
"""Questions to one node that wait for an answer at the same time, each for a second."""

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
        self._watch = Watch(me=me, bus=bus, registry=registry, on_alone=self.hello)

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
        while True:
            beat = loop.time() + pace.left_s()
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


class LeaseKeeper:
    """Asks the nodes that run this owner's attempts whether they still do.

    A node without responders is dead at once; one that does not answer for MISSED_BEATS seconds is frozen or cut off;
    an attempt its node does not know is lost. Being asked is what tells the node that its owner lives. Up to OPEN
    questions wait for an answer: one that the dying node swallowed does not hold up the next.
    """

    def __init__(self, *, me: NodeId, bus: Bus, registry: Registry, owner: Owner) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self.owner = owner
        self._open: Counter[NodeId] = Counter()
        self._silence: dict[NodeId, tuple[float, float]] = {}
        """Since when each that does not answer was asked in vain, and when that was seen last."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        while True:
            await self.owner.busy.wait()
            await asyncio.sleep(LEASE_CHECK_S)
            for node, jobs in self.owner.leased().items():
                if self._open[node] < OPEN:
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
        self._open[node] += 1
        try:
            check = LeaseCheck(owner=self.me, attempts=tuple(asked.items()))
            subject = subjects.node(node, "lease")
            state: LeaseState = await self.bus.call(subject, check, LeaseState, timeout_s=BEAT_S)
            self._silence.pop(node, None)
            self.owner.leases_answered(asked, state)
        except NoResponders:
            self._gone(node, "does not answer")
        except TimeoutError:
            if self._silent_s(node, now) >= MISSED_BEATS * BEAT_S:
                self._gone(node, "fell silent")
        except OutbidError as error:
            log.warning("lease check of %s: %s", node, error, extra={"action": "lease_check_failed"})
        finally:
            self._open[node] -= 1

    def _silent_s(self, node: NodeId, asked: float) -> float:
        """What was before a time in which it was not asked does not count."""
        since, seen = self._silence.get(node, (asked, asked))
        now = time.monotonic()
        since = asked if asked > seen + BEAT_S else since
        self._silence[node] = since, now
        return now - since

    def _gone(self, node: NodeId, why: str) -> None:
        self._silence.pop(node, None)
        if self.bus.connected:
            self.registry.drop(node, why)
            self.owner.lose_node(node, why)
