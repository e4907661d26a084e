"""The keeper's side: copies of other nodes' durable jobs, which this node takes over when their owner stays away.

Any node answers; only one that is always on is chosen. One owner's requests are handled one after the other, each when
what follows from it is on disk. When a write fails, nobody knows what is on disk, so that owner's copies are read
again before anything else is decided about them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from nats.aio.msg import Msg

from outbid_contracts import subjects
from outbid_contracts.codec import decode
from outbid_contracts.durable import DurableJob
from outbid_contracts.errors import OutbidError, StorageFailed
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.keeping import Compare, Compared, Mirror, Mirrored, Noted, Released
from outbid_contracts.messages import JobRecord
from outbid_node import pace
from outbid_node.client import Bus
from outbid_node.durable.book import Book
from outbid_node.durable.copies import Copies
from outbid_node.durable.holding import MOVED, Absences, Holding, Write
from outbid_node.durable.parked import as_record
from outbid_node.registry import Registry

log = logging.getLogger(__name__)

LOOK_S = 1.0
ADOPT_AT_ONCE = 200
DROP_AT_ONCE = 900
RELEASE_S = 1.0

_decoder = msgspec.msgpack.Decoder(DurableJob)


class Kept:
    """A `Holding` and its place in line."""

    def __init__(self, owner: NodeId) -> None:
        self.holding = Holding(owner)
        self.lock = asyncio.Lock()
        self.is_known = True
        """Whether `holding` is what is on disk."""


class Keeper:
    def __init__(
        self, *, me: NodeId, bus: Bus, registry: Registry, book: Book, always_on: bool, adopt_after_s: float
    ) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self.book = book
        self.always_on = always_on
        self._copies = Copies(bus, me)
        self._absences = Absences(adopt_after_s)
        self._kept: dict[NodeId, Kept] = {}
        self._is_read = False
        self._closing = False
        self._adopting: dict[NodeId, asyncio.Task[None]] = {}

    def answers(self, verb: str) -> Callable[[Msg], Awaitable[Any]] | None:
        """What `mesh.node.<me>.<verb>` is answered with."""
        match verb:
            case "compare":
                return lambda msg: self.compare(decode(msg.data, Compare))
            case "mirror":
                return lambda msg: self.mirror(decode(msg.data, Mirror))
        return None

    # -- what owners say ------------------------------------------------------------------------------------------

    async def compare(self, asked: Compare) -> Compared:
        kept = self._of(asked.owner)
        async with kept.lock:
            if not await self._is_ready(kept):
                return Compared(status="busy")
            reply = kept.holding.compare(asked)
            if not (asked.last and reply.status == "ok"):
                return reply
            if kept.holding.is_moving:
                return Compared(status="busy")
            surplus = kept.holding.surplus()
            while some := list(itertools.islice(surplus, DROP_AT_ONCE)):
                await self._write(kept, some)
            kept.holding.begin()
            return reply

    async def mirror(self, asked: Mirror) -> Mirrored:
        kept = self._of(asked.owner)
        async with kept.lock:
            if not await self._is_ready(kept):
                return Mirrored(status="busy")
            writes = kept.holding.changes(asked)
            if writes is None:
                return Mirrored(status="again")
            await self._write(kept, writes)
            return Mirrored()

    def _of(self, owner: NodeId) -> Kept:
        return self._kept.setdefault(owner, Kept(owner))

    async def _is_ready(self, kept: Kept) -> bool:
        if not self._is_read or self._closing:
            return False
        if not kept.is_known:
            await self._read_again(kept)
        return True

    async def _write(self, kept: Kept, writes: Sequence[Write]) -> None:
        """Raises StorageFailed."""
        try:
            await self._copies.write(kept.holding.owner, writes)
        except BaseException:
            kept.is_known = False
            raise
        kept.holding.apply(writes)

    async def _read_again(self, kept: Kept) -> None:
        """The state is written before the copies are read: once it is on disk, so is all that was under way. Raises
        StorageFailed.
        """
        owner = kept.holding.owner
        fresh = Holding(owner)
        await self._copies.make()
        async for found, state in self._copies.owners():
            fresh.apply([state] if found == owner else [])
        await self._copies.write(owner, [Write(None, fresh.state.encode())])
        async for write in self._copies.of(owner):
            fresh.apply([write])
        kept.holding, kept.is_known = fresh, True

    # -- copies, for those who look for a job -----------------------------------------------------------------------

    async def find(self, id: JobId) -> JobRecord | None:
        """A job whose owner is away, as this node last heard of it."""
        for owner, kept in self._kept.items():
            if kept.holding.copies.get(id, MOVED) == MOVED or owner in self.registry:
                continue
            with suppress(StorageFailed, msgspec.DecodeError):
                data = await self._copies.one(owner, id)
                return as_record(_decoder.decode(data), "its owner is away") if data else None
        return None

    # -- taking over ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        await self._read()
        while True:
            await pace.next_beat()
            if not self.book.ready.is_set():
                continue
            owners = [owner for owner, kept in self._kept.items() if kept.holding.is_adoptable]
            due = self._absences.look(time.monotonic(), owners, self.registry.__contains__)
            moving = [owner for owner, kept in self._kept.items() if kept.holding.is_moving]
            for owner in {*due, *moving} - self._adopting.keys():
                self._adopting[owner] = asyncio.create_task(self._adopt_surely(self._kept[owner]))

    async def _read(self) -> None:
        while not self._is_read:
            try:
                if self.always_on:
                    await self._copies.make()
                if self.always_on or await self._copies.exists():
                    async for owner, state in self._copies.owners():
                        self._of(owner).holding.apply([state])
                    async for owner, copy in self._copies.all():
                        self._of(owner).holding.apply([copy])
                self._is_read = True
            except StorageFailed as error:
                log.debug("%s", error.message, extra={"action": "copies_unread"})
                await asyncio.sleep(LOOK_S)

    async def _adopt_surely(self, kept: Kept) -> None:
        try:
            await self._adopt(kept)
        except OutbidError as error:
            log.error("taking over jobs: %s", error, extra={"action": "adopt_failed"})
        finally:
            del self._adopting[kept.holding.owner]

    async def _adopt(self, kept: Kept) -> None:
        owner = kept.holding.owner
        async with kept.lock:
            if not await self._is_ready(kept):
                return
            if kept.holding.is_adoptable and owner not in self.registry:
                log.warning(
                    "%d durable jobs of node %s, which is away, are this node's now",
                    *(len(kept.holding.copies), owner),
                    extra={"action": "jobs_adopted", "owner": owner},
                )
                kept.holding.end_session()
                await self._write(kept, [Write(None, b"adopted")])
            if not kept.holding.is_moving:
                return
        await self._move(kept)

    async def _move(self, kept: Kept) -> None:
        """From the copies into this node's own book; it may be done twice."""
        some: list[Write] = []
        async for write in self._copies.of(kept.holding.owner):
            if write.data:
                some.append(write)
            if len(some) == ADOPT_AT_ONCE:
                await self._move_some(kept, some)
                some = []
        await self._move_some(kept, some)

    async def _move_some(self, kept: Kept, copies: Sequence[Write]) -> None:
        """What is not readable is dropped: the owner, should it return, has it still."""
        found = [(copy.id, _decoded(copy)) for copy in copies]
        records = [record for _, record in found if record is not None]
        await self.book.recovery.adopt([record for record in records if record.ended_ms is None], kept.holding.owner)
        await self.book.recovery.inherit(record for record in records if record.ended_ms is not None)
        async with kept.lock:
            await self._write(kept, [Write(id, None if record is None else MOVED) for id, record in found])

    # -- stopping -------------------------------------------------------------------------------------------------

    async def release(self) -> None:
        """This node stops in order: owners that are there may end their jobs without it. Takes RELEASE_S at most."""
        self._closing = True
        there = [kept for owner, kept in self._kept.items() if owner in self.registry]  # copies may be on their way
        with suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_S):
                await asyncio.gather(*map(self._release, there), return_exceptions=True)

    async def _release(self, kept: Kept) -> None:
        async with kept.lock:
            if kept.holding.state != "keeping" or not kept.is_known:
                return
            await self._write(kept, [Write(None, b"released")])
        subject = subjects.node(kept.holding.owner, "released")
        await self.bus.call(subject, Released(keeper=self.me), Noted, timeout_s=RELEASE_S)


def _decoded(copy: Write) -> DurableJob | None:
    try:
        return _decoder.decode(copy.data or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        log.warning("the copy of job %s is not readable: %s", copy.id, error, extra={"action": "copy_broken"})
        return None
