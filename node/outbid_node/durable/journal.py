"""Durable jobs on disk: the bucket of one owner's records."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress

import msgspec

from outbid_contracts.durable import DurableJob
from outbid_contracts.errors import StorageFailed
from outbid_contracts.ids import JobId, NodeId
from outbid_node.client import Bus, NoResponders
from outbid_node.durable.entry import Change, Entry, Keys, purge, refusal
from outbid_node.durable.stream import WRONG_LAST_SEQUENCE, ApiError, Outgoing, Stored, Stream, bucket
from outbid_node.durable.writer import Writer

log = logging.getLogger(__name__)

RETRY_S = 1.0
OPEN_S = 10.0
CLOSE_S = 2.0
READ_TRIES = 3

_decoder = msgspec.msgpack.Decoder(DurableJob)


class Journal:
    """The records of one owner: KV bucket `JOBS_<node>`.

    A change is enqueued and its future is done when it is on disk. One batch is under way at a time; what comes
    meanwhile is the next. No answer: the same batch again, until there is one; compare-and-set makes that safe. A new
    job that cannot be stored is refused (StorageFailed, nothing is kept of it); a change of a stored one is never
    given up. Only another writer of the same key makes one fail.

    JetStream may be off when the daemon starts (`trouble()` says why). `open` does not fail then but returns 0, new
    jobs are refused with the reason (`problem`), and the journal opens by itself when it can: it calls `on_open`, which
    is to `load` and recover, and takes new jobs once that has returned. If it opened at once, `on_open` is not called.
    """

    def __init__(self, bus: Bus, node: NodeId, *, trouble: Callable[[], str | None]) -> None:
        self.term = 0
        """Which start of the daemon this is: 1, 2, …; 0 until it is open."""
        self.on_open: Callable[[], Awaitable[None]] | None = None
        self._stream = Stream(bus, f"KV_JOBS_{node}")
        self._keys = Keys(node)
        self._trouble = trouble
        self._problem: str | None = "the journal is not open yet"
        self._writer = Writer(bus, self._stream, self._keys, trouble)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def on_commit(self) -> list[Callable[[Sequence[Change]], None]]:
        """Called with what changed after each commit."""
        return self._writer.on_commit

    # -- opening and closing -------------------------------------------------------------------------------------

    @property
    def problem(self) -> str | None:
        """Why new jobs are refused now, for people."""
        return self._trouble() or self._problem

    async def open(self) -> int:
        """Make the bucket and count this start on disk: its number, or 0 if that cannot be done yet (see the class)."""
        try:
            await self._open()
        except StorageFailed as error:
            self._problem = error.message
            log.error("%s", error.message, extra={"action": "journal_closed"})
            self._tasks.append(asyncio.create_task(self._open_later(), name="open the journal"))
        else:
            self._problem = None
            self._write()
        return self.term

    async def close(self) -> None:
        """What is not on disk after CLOSE_S fails."""
        self._problem = "the node stops"
        futures = [future for entry in self._writer.entries() for future in entry.futures if not future.done()]
        if futures and self.term:
            await asyncio.wait(futures, timeout=CLOSE_S)
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        for entry in self._writer.entries():
            entry.fail(refusal("the node stopped before it was on disk"))

    def _write(self) -> None:
        self._tasks.append(asyncio.create_task(self._writer.run(), name="write the journal"))

    async def _open_later(self) -> None:
        while not self.term:
            await asyncio.sleep(RETRY_S)
            with suppress(StorageFailed):
                await self._open()
        self._write()
        while self.on_open is not None:
            try:
                await self.on_open()
                break
            except Exception as error:
                log.exception("reading the journal: %s", error, extra={"action": "journal_unread"})
                await asyncio.sleep(RETRY_S)
        self._problem = None
        log.info("the journal is open", extra={"action": "journal_open", "term": self.term})

    async def _open(self) -> None:
        until = asyncio.get_running_loop().time() + OPEN_S
        while True:
            if why := self._trouble():
                raise refusal(why)
            try:
                await self._stream.ensure(bucket(self._keys.prefix))
                self.term = await self._count_start()
                return
            except (TimeoutError, NoResponders) as error:
                why = str(error)
            except ApiError as error:
                if error.err_code != WRONG_LAST_SEQUENCE:
                    raise refusal(error.message) from error
            if asyncio.get_running_loop().time() > until:
                raise refusal(why or "its starts cannot be counted")
            await asyncio.sleep(0.1)

    async def _count_start(self) -> int:
        subject = self._keys.term
        last = await self._stream.last(subject)
        term = int(last.data) + 1 if last and last.data.isdigit() else 1
        await self._stream.store([Outgoing(subject, str(term).encode(), last.seq if last else 0)])
        return term

    # -- reading -------------------------------------------------------------------------------------------------

    async def load(self) -> list[DurableJob]:
        """All jobs that have not ended, oldest first. Call it before any of them is changed. Raises StorageFailed.

        What cannot be read is set aside under `broken.<job>`: it must not keep the node from starting.
        """
        try:
            found, broken = await self._scan()
            over = await self._over(found)
        except (TimeoutError, NoResponders, ApiError) as error:
            raise refusal(f"the jobs cannot be read: {error}") from error
        for stored, why in broken.values():
            await self._set_aside(stored, why)
        for id, (seq, _) in found.items():
            self._writer.revisions[id] = seq
        for id in over:
            del found[id]
            self.drop(id)
        self._writer.sweeper.knows_all = True
        return [record for _, record in sorted(found.values(), key=lambda one: (one[1].job.created_ms, one[0]))]

    async def _scan(self) -> tuple[dict[JobId, tuple[int, DurableJob]], dict[str, tuple[Stored, str]]]:
        """The last record of each job with its sequence, and what cannot be read, by subject. A ledger killed between
        storing a record and removing the one before has both.
        """
        found: dict[JobId, tuple[int, DurableJob]] = {}
        broken: dict[str, tuple[Stored, str]] = {}
        async for stored in self._stream.scan(self._keys.live("*")):
            id = JobId(stored.subject.removeprefix(self._keys.prefix))
            found.pop(id, None)
            broken.pop(stored.subject, None)
            self._writer.sweeper.over.pop(id, None)
            if stored.removed:
                self._writer.sweeper.over[id] = stored.seq
                continue
            try:
                record = self._decoded(stored)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                broken[stored.subject] = stored, str(error)
                continue
            found[record.job.id] = stored.seq, record
        return found, broken

    async def _over(self, ids: Iterable[JobId]) -> list[JobId]:
        """Those that have ended: the marker of their removal has expired, and the removal itself was lost in a kill."""
        subjects = {self._keys.ended(id): id for id in ids}
        ended = await self._stream.lasts(list(subjects))
        return [subjects[subject] for subject, stored in ended.items() if not stored.removed]

    def _decoded(self, stored: Stored) -> DurableJob:
        record = _decoder.decode(stored.data)
        if record.job.id != stored.subject.removeprefix(self._keys.prefix):
            raise msgspec.DecodeError(f"it is the record of {record.job.id}")
        return record

    async def _set_aside(self, stored: Stored, why: str) -> None:
        key = stored.subject.removeprefix(self._keys.prefix)
        log.warning(
            "the record of job %s is not readable (%s); it is kept as broken.%s",
            *(key, why, key),
            extra={"action": "journal_broken", "job": key},
        )
        aside = Outgoing(self._keys.broken(JobId(key)), stored.data)
        try:
            await self._stream.store([aside, purge(stored.subject, stored.seq)])
        except (TimeoutError, NoResponders, ApiError) as error:
            log.warning("it stays where it is: %s", error, extra={"action": "journal_broken", "job": key})
            self._writer.revisions[JobId(key)] = stored.seq  # so that it is not swept

    async def ended(self, id: JobId) -> DurableJob | None:
        """The last record of a job that has ended, as long as that is kept. Raises StorageFailed."""
        stored = await self._last(self._keys.ended(id))
        try:
            return None if stored is None or stored.removed else _decoder.decode(stored.data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("ended.%s is not readable: %s", id, error, extra={"action": "journal_broken", "job": id})
            return None

    async def _last(self, subject: str) -> Stored | None:
        tries = 0
        while True:
            tries += 1
            try:
                return await self._stream.last(subject)
            except (TimeoutError, NoResponders, ApiError) as error:
                if tries == READ_TRIES:
                    raise refusal(f"the result cannot be read: {error}") from error
                await asyncio.sleep(0.2)

    # -- writing -------------------------------------------------------------------------------------------------

    def put(self, record: DurableJob) -> asyncio.Future[None]:
        """Write this record. The future fails with StorageFailed or PayloadTooLarge."""
        id = record.job.id
        if (why := self.problem) and not self._writer.knows(id):
            refused = Entry(id, "put", record)
            future = refused.wait()
            refused.fail(refusal(why))
            return future
        return self._writer.enqueue(id, "put", record)

    def end(self, record: DurableJob) -> asyncio.Future[None]:
        """Move the job to `ended.<job>`, kept for its `keep_s`. Final: a put that follows before it is on disk is
        dropped.
        """
        return self._writer.enqueue(record.job.id, "end", record)

    def drop(self, id: JobId) -> asyncio.Future[None]:
        """Forget the job: it is another node's."""
        return self._writer.enqueue(id, "drop", None)
