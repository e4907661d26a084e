"""What a node goes on with beside new jobs: its own of the life before, and those of a node that is gone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from outbid_contracts import subjects
from outbid_contracts.durable import DurableJob
from outbid_contracts.errors import NodeLost, StorageFailed
from outbid_contracts.events import Awarded
from outbid_contracts.ids import JobId, NodeId
from outbid_node.delivered import Delivered
from outbid_node.durable.parked import deadline_of
from outbid_node.durable.records import HEIR, about, cut_off, ending
from outbid_node.owned import OwnedJob, now_ms

if TYPE_CHECKING:
    from outbid_node.durable.book import Book

log = logging.getLogger(__name__)

FIND_AGAIN_S = 5.0
"""How long a restarted owner waits for the nodes that ran its attempts to appear before it gives them up."""

FEW = 200
"""Jobs handled in one go; then the event loop gets a turn."""


class Recovery:
    def __init__(self, book: Book) -> None:
        self.book = book

    async def recover(self) -> None:
        """Go on with what the life before this one left."""
        started = time.monotonic()
        self.book.term = self.book.journal.term
        with suppress(StorageFailed):  # a watch then shows what happens from now on
            await self.book.events.open()
        records = await self.book.journal.load()
        await self.book.checkpoints.open({record.job.id for record in records})
        gone = await self.book.not_ours(records) if records else {}
        elsewhere: list[DurableJob] = []
        for number, record in enumerate(records):
            if record.job.id in gone:
                self.book.give_up(record.job.id, gone[record.job.id])
            elif not self._recover(record):
                elsewhere.append(record)
            if number % FEW == FEW - 1:
                await asyncio.sleep(0)
        await asyncio.gather(*map(self._find_again, elsewhere))
        self.book.ready.set()
        if records:
            log.info(
                "%d durable jobs go on (%.2f s)",
                len(records) - len(gone),
                time.monotonic() - started,
                extra={"action": "jobs_recovered"},
            )

    def _recover(self, record: DurableJob) -> bool:
        """False: another node runs it, or did."""
        self.book.trace.note("recovered", number=record.number, **about(record))
        if record.state != "running" or record.node is None:
            self.book.park(record)
        elif record.node == self.book.me:
            lost = NodeLost("the node was restarted while it ran the job").body()
            last = msgspec.structs.replace(record.attempts[-1], ended_ms=now_ms(), error=lost)
            attempts = (*record.attempts[:-1], last)
            self.book.park(msgspec.structs.replace(record, state="waiting", node=None, attempts=attempts))
        else:
            return False
        return True

    async def _find_again(self, record: DurableJob) -> None:
        """Its attempt may still run, or have a result: its node is asked by the lease check."""
        assert record.node is not None
        owned = self.book.owned(record)
        owned.deadline = deadline_of(record)
        owned.state, owned.node = "running", record.node
        owned.name = self.book.registry.name_of(record.node)
        owned.promised_s = record.promised_s
        owned.outcome = asyncio.get_running_loop().create_future()
        owned.awarded = time.monotonic()
        owned.lost_not_before = owned.awarded + FIND_AGAIN_S
        owned.resumed = await self.book.owner.checkpoints.of(owned.job, owned.attempts)
        if owned.delivered is not None:
            await self._rejoin(owned, owned.delivered)
        self.book.owner.drive(owned)

    async def _rejoin(self, owned: OwnedJob, delivered: Delivered) -> None:
        """Its pieces so far are in the events, and those to come are heard again."""

        async def read() -> list[Any]:
            with suppress(StorageFailed):
                return await self.book.events.replay(owned.job.id)
            return []

        awards = [e for e in await read() if isinstance(e, Awarded) and e.attempt == owned.number]
        await delivered.rejoin(owned.job, owned.number, awards[-1].chunks if awards else 0, read)

    async def adopt(self, records: Iterable[DurableJob], from_owner: NodeId) -> list[JobId]:
        """Become the owner of another node's jobs; returns those that are on this node's disk now."""
        mine = [
            msgspec.structs.replace(
                record,
                job=self._as_mine(record),
                state="waiting",
                node=None,
                number=(record.heirs + 1) * HEIR,
                heirs=record.heirs + 1,
                attempts=tuple(a if a.ended_ms else cut_off(a) for a in record.attempts),
            )
            for record in records
            if not self.book.owns(record.job.id) and await self.book.ended_record(record.job.id) is None
        ]
        await asyncio.gather(*(self.book.journal.put(record) for record in mine))
        for record in mine:
            self.book.trace.note("adopted", from_owner=from_owner, number=record.number, **about(record))
            self.book.park(record)
        return [record.job.id for record in mine]

    def _as_mine(self, record: DurableJob) -> Any:
        reply = record.job.reply and subjects.events(self.book.me, record.job.id)
        return msgspec.structs.replace(record.job, owner=self.book.me, reply=reply)

    async def inherit(self, records: Iterable[DurableJob]) -> None:
        """Keep ends that another node decided and perhaps recorded before it went away; returns once on disk."""
        for record in records:
            id = record.job.id
            if self.book.owns(id) or await self.book.ended_record(id) is not None:
                continue
            mine = msgspec.structs.replace(record, job=self._as_mine(record), heirs=record.heirs + 1)
            await self.book.journal.end(mine)
            self.book.note_end("inherited", mine)
            self.book.events.post(id, ending(mine))
            self.book.after.ended(id, mine.state)
