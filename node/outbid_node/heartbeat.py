"""What keeps a node's picture of the mesh true: presence, and the watch over leases (`watch` sees who dies)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable

import msgspec
from nats.aio.msg import Msg

from outbid_contracts import subjects
from outbid_contracts.codec import decode, encode
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import Capacity, LeaseCheck, LeaseState, Presence
from outbid_node import pace
from outbid_node.client import Bus, NoResponders, is_no_responders
from outbid_node.owned import OwnedJob
from outbid_node.owner import Owner
from outbid_node.registry import BEAT_S, MISSED_BEATS, Registry
from outbid_node.watch import LOOKING_S, Watch

log = logging.getLogger(__name__)

LEASE_CHECK_S = 0.25
"""How often an owner asks after its attempts on other nodes: a killed daemon is noticed within this time."""

OPEN = 4
"""Questions to one node that wait for an answer at the same time, each for a second."""

COALESCE_S = 0.02
"""Changes within this time go out as one presence message."""

SPACING = 0.25
"""Between two of those at least, as a share of the time between heartbeats: a runner of short jobs is full and has room
again fifty times a second, and each message costs every node about a millisecond. A slot that others wait for is told
at once all the same (`Capacity`).
"""


class PresenceKeeper:
    """Publishes this node's presence, every `Registry.beat_s` and on change, and takes in the others'. Who hears of a
    node that it does not know answers to it alone: one that comes costs each of the others two messages, not as many as
    there are nodes.
    """

    def __init__(self, *, me: NodeId, bus: Bus, registry: Registry, describe: Callable[[], Presence]) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self._describe = describe
        self._wake = asyncio.Event()
        self._answers = bus.open_inbox(self._hear)
        self._new_until = 0.0
        self._said = self._due = 0.0
        """When it was published last, and when it is to be again though nothing changed (the event loop's clock)."""
        self.on_beat: list[Callable[[], None]] = []
        self._watch = Watch(me=me, bus=bus, registry=registry, on_alone=self.hello)

    async def start(self) -> None:
        await self._watch.start()
        await self.bus.subscribe(subjects.PRESENCE_ALL, self._on_presence)
        await self.bus.subscribe(subjects.HELLO, self._on_hello)
        await self.bus.subscribe(subjects.CAPACITY_ALL, self._on_capacity)
        self._new_until = asyncio.get_running_loop().time() + LOOKING_S
        self.publish()

    def hello(self) -> None:
        """Ask everybody else to say who they are now."""
        self.bus.post(subjects.HELLO, self.me.encode(), reply=self._answers)

    def touch(self) -> None:
        """Something a bid rests on changed; it goes out within COALESCE_S if the last change is a while ago."""
        self._wake.set()

    def publish(self) -> None:
        self._wake.clear()
        presence = self._presence()
        if presence.state != "leaving":
            self.registry.receive(presence)
        self._said = asyncio.get_running_loop().time()
        self._due = self._said + presence.beat_s - BEAT_S / 2
        self.bus.post(subjects.presence(self.me), encode(presence), reply=self._answers)

    def _presence(self) -> Presence:
        """A new node is heard each BEAT_S: the way to some of the others may open later than to the first."""
        is_new = asyncio.get_running_loop().time() < self._new_until
        return msgspec.structs.replace(self._describe(), beat_s=BEAT_S if is_new else self.registry.beat_s)

    def _answer(self, reply: str) -> None:
        self.bus.post(reply, encode(self._presence()), reply=self._answers)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as both:
            both.create_task(self._beat())
            both.create_task(self._watch.run())

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            beat = loop.time() + pace.left_s()
            while await self._changed(beat):
                self.publish()
            if self._wake.is_set() or loop.time() >= self._due:
                self.publish()
            for callback in self.on_beat:
                callback()

    async def _changed(self, until: float) -> bool:
        """Whether there is a change to publish now, before that moment."""
        try:
            async with asyncio.timeout_at(until):
                await self._wake.wait()
                spaced = self._said + SPACING * self.registry.beat_s
                await asyncio.sleep(max(COALESCE_S, spaced - asyncio.get_running_loop().time()))
        except TimeoutError:
            return False
        return True

    async def _on_presence(self, msg: Msg) -> None:
        self._hear(msg)

    def _hear(self, msg: Msg) -> None:
        if is_no_responders(msg):
            return
        try:
            presence = decode(msg.data, Presence)
        except OutbidError as error:
            log.warning("unreadable presence: %s", error, extra={"action": "presence_unreadable"})
            return
        if presence.node == self.me:
            return
        if msg.reply and presence.state != "leaving" and not self._knows(presence):
            self._answer(msg.reply)  # it is new to us, so we are probably new to it
        self.registry.receive(presence)

    def _knows(self, presence: Presence) -> bool:
        known = self.registry.get(presence.node)
        return known is not None and known.presence.boot == presence.boot

    async def _on_hello(self, msg: Msg) -> None:
        if msg.data == self.me.encode():
            return
        if msg.reply:
            self._answer(msg.reply)
        else:
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
