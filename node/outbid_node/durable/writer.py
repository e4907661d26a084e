"""Group commit: changes of durable jobs, written one synced batch of JetStream at a time, or few one by one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from outbid_contracts.durable import DurableJob
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import JobId
from outbid_node.client import Bus, NoResponders
from outbid_node.durable.entry import UNKNOWN, Change, Entry, Keys, Verb, judge, over, refusal
from outbid_node.durable.stream import WRONG_LAST_SEQUENCE, ApiError, Stored, Stream
from outbid_node.durable.sweeper import IDLE_S, Sweeper

log = logging.getLogger(__name__)

BATCH_RECORDS = 500
"""Two messages for a job that ends, and an atomic batch takes 1000."""

FEW_MESSAGES = 12
"""Up to so many are stored one by one, each with its own sync: a batch takes as long as ten to fifteen (measured)."""

BATCH_BYTES = 6 * 2**20
RETRY_S = 1.0
AWAY_S = 0.05
"""How often the connection to the ledger is looked at while it is gone."""

INCOMPLETE = frozenset({10175, 10176})
"""The server knows only a part of the batch, because it was restarted in the middle of it: send it again."""


class Writer:
    """What waits to be written, and the revisions to compare with. `run` writes it."""

    def __init__(self, bus: Bus, stream: Stream, keys: Keys, trouble: Callable[[], str | None]) -> None:
        self.on_commit: list[Callable[[Sequence[Change]], None]] = []
        self.revisions: dict[JobId, int] = {}
        """Sequence of each live record."""
        self._bus = bus
        self.sweeper = Sweeper(stream, keys)
        self._stream = stream
        self._keys = keys
        self._trouble = trouble
        self._queue: dict[JobId, Entry] = {}
        self._flying: dict[JobId, Entry] = {}
        self._wake = asyncio.Event()
        self._waits = False

    def knows(self, id: JobId) -> bool:
        """Whether this job is stored or about to be."""
        return self._is_stored(id) or id in self._queue or id in self._flying

    def entries(self) -> list[Entry]:
        return [*self._flying.values(), *self._queue.values()]

    def enqueue(self, id: JobId, verb: Verb, record: DurableJob | None) -> asyncio.Future[None]:
        """Two changes of one job before the next batch are one: the newest."""
        entry = self._queue.get(id)
        if entry is None:
            entry = self._queue[id] = Entry(id, verb, record)
        else:
            entry.replace(verb, record)
        self._wake.set()
        return entry.wait()

    async def run(self) -> None:
        while True:
            idle = not await self._wait()
            if self.sweeper.is_due(idle=idle):
                await self.sweeper.sweep(self.revisions, idle=idle)
            await asyncio.sleep(0)  # those who waited for the last batch may have more for this one
            batch = self._take()
            if not batch:
                self._wake.clear()
                continue
            self._flying = {entry.id: entry for entry in batch}
            try:
                await self._commit(batch)
            except Exception as error:
                log.exception("journal: %s", error, extra={"action": "journal_error"})
                self._requeue(entry for entry in batch if not all(future.done() for future in entry.futures))
                await asyncio.sleep(RETRY_S)
            self._flying = {}

    async def _wait(self) -> bool:
        """Until there is something to write; False if there was nothing for a while, and something to sweep."""
        with suppress(TimeoutError):
            async with asyncio.timeout(IDLE_S if self.sweeper.over else None):
                await self._wake.wait()
        return self._wake.is_set()

    def _take(self) -> list[Entry]:
        """The next batch, encoded. What is too large for the bus fails here, alone."""
        batch: list[Entry] = []
        size = 0
        while self._queue and len(batch) < BATCH_RECORDS:
            id, entry = next(iter(self._queue.items()))
            try:
                size += len(entry.encoded())
            except OutbidError as error:
                del self._queue[id]
                entry.fail(error)
                continue
            if batch and size > BATCH_BYTES:
                break
            del self._queue[id]
            batch.append(entry)
        return batch

    def _is_stored(self, id: JobId) -> bool:
        return self.revisions.get(id, UNKNOWN) != UNKNOWN

    # -- one batch, until it is decided --------------------------------------------------------------------------

    async def _commit(self, batch: list[Entry]) -> None:
        """Try until there is an answer. `unsure`: a try that got none may have been stored."""
        unsure, pause = False, AWAY_S
        while batch:
            try:
                return await self._try(batch)
            except TimeoutError as error:
                unsure, why = True, str(error)
            except NoResponders as error:
                why = str(error)
            except ApiError as error:
                why = error.message
                if error.err_code == WRONG_LAST_SEQUENCE or (unsure and error.err_code not in INCOMPLETE):
                    batch, unsure = await self._compare(batch), False
                if error.err_code not in {WRONG_LAST_SEQUENCE, *INCOMPLETE}:
                    return await self._put_off(batch, why)
            if trouble := self._trouble():
                batch = self._refuse(batch, trouble, unsure)
            if pause > 0.2:
                self._say_waits(why)
            await asyncio.sleep(pause)
            pause = min(RETRY_S, pause * 2) if self._bus.connected else AWAY_S
        return None

    async def _try(self, batch: list[Entry]) -> None:
        if not self._bus.connected:
            raise NoResponders("the ledger is away")
        if sum(entry.size for entry in batch) <= FEW_MESSAGES and not any(entry.is_brief for entry in batch):
            return await self._try_each(batch)
        groups = [entry.messages(self._keys, self.revisions.get(entry.id, 0)) for entry in batch]
        messages = [message for group in groups for message in group]
        seq = await self._stream.store(messages) - len(messages)
        done = []
        for entry, group in zip(batch, groups, strict=True):
            seq += len(group)
            done.append((entry, seq))
        self._settle(done)
        return None

    async def _try_each(self, batch: list[Entry]) -> None:
        """One by one: what is stored leaves the batch. Raises what stopped the rest of it."""
        messages = [entry.message(self._keys, self.revisions.get(entry.id, 0)) for entry in batch]
        answers = await self._stream.store_each(messages)
        done = [(entry, seq) for entry, seq in zip(batch, answers, strict=True) if isinstance(seq, int)]
        ended = [
            (entry.id, self.revisions[entry.id])
            for entry, _ in done
            if entry.verb == "end" and self._is_stored(entry.id)
        ]
        self._settle(done)
        failed = [error for error in answers if not isinstance(error, int)]
        batch[:] = [entry for entry, seq in zip(batch, answers, strict=True) if not isinstance(seq, int)]
        await self._mark(ended)
        if failed:
            raise min(failed, key=_urgency)

    async def _mark(self, ended: Sequence[tuple[JobId, int]]) -> None:
        """As over, on their live keys. Where that fails the ends count all the same, and the records are swept."""
        markers = [over(self._keys.live(id), revision) for id, revision in ended]
        for (id, revision), seq in zip(ended, await self._stream.store_each(markers), strict=True):
            self.sweeper.over[id] = seq if isinstance(seq, int) else revision

    async def _compare(self, batch: list[Entry]) -> list[Entry]:
        """After a conflict: settle what an earlier try has stored, fail what another writer changed, return the rest,
        which is to be tried again.
        """
        found = await self._look(batch)
        done, rest = [], []
        for entry in batch:
            live, ended = found.get(self._keys.live(entry.id)), found.get(self._keys.ended(entry.id))
            verdict = judge(entry, entry.expected(self.revisions.get(entry.id, 0)), live, ended)
            if isinstance(verdict, int):
                done.append((entry, verdict))
            elif verdict == "again":
                entry.note_markers(live, ended)
                rest.append(entry)
            else:
                entry.fail(refusal(f"another writer has changed job {entry.id} in its bucket {self._stream.name[3:]}"))
        self._settle(done)
        return rest

    async def _look(self, batch: Iterable[Entry]) -> dict[str, Stored]:
        subjects = [subject for entry in batch for subject in entry.subjects(self._keys)]
        while True:
            try:
                return await self._stream.lasts(subjects)
            except (TimeoutError, NoResponders, ApiError) as error:
                self._say_waits(str(error))
                await asyncio.sleep(RETRY_S)

    def _settle(self, done: Sequence[tuple[Entry, int]]) -> None:
        if not done:
            return
        for entry, seq in done:
            if entry.verb == "put":
                self.revisions[entry.id] = seq
                self.sweeper.over.pop(entry.id, None)
            else:
                self._note_over(entry, seq)
            entry.succeed()
        self._say_goes_on()
        changes = [Change(entry.id, entry.record, entry.verb == "end") for entry, _ in done]
        for hook in self.on_commit:
            try:
                hook(changes)
            except Exception as error:
                log.exception("after a commit: %s", error, extra={"action": "journal_hook_failed"})

    def _note_over(self, entry: Entry, seq: int) -> None:
        """`seq`: of the marker on its live key."""
        if self.revisions.pop(entry.id, None) is not None and entry.verb == "end":
            self.sweeper.over[entry.id] = seq

    # -- when it cannot be written -------------------------------------------------------------------------------

    async def _put_off(self, batch: list[Entry], why: str) -> None:
        """It was refused: so are its new jobs; the others wait."""
        rest = self._refuse(batch, why)
        self._requeue(rest)
        if rest:
            self._say_waits(why)
            await asyncio.sleep(RETRY_S)

    def _refuse(self, batch: list[Entry], why: str, unsure: bool = False) -> list[Entry]:
        """Fail the new jobs, return the others. `unsure`: their records may be there, so they are to be purged."""
        rest = []
        for entry in batch:
            if entry.verb != "put" or self._is_stored(entry.id):
                rest.append(entry)
                continue
            entry.fail(refusal(why))
            if unsure:
                self.revisions[entry.id] = UNKNOWN
                if entry.id not in self._queue:
                    self.enqueue(entry.id, "drop", None)
        return rest

    def _requeue(self, batch: Iterable[Entry]) -> None:
        """Before what came meanwhile, of which the newest version of a job counts."""
        newer, self._queue = self._queue, {entry.id: entry for entry in batch}
        for entry in newer.values():
            older = self._queue.setdefault(entry.id, entry)
            if older is not entry:
                older.futures += entry.futures
                older.replace(entry.verb, entry.record)

    def _say_waits(self, why: str) -> None:
        if not self._waits:
            log.warning("durable jobs wait for the disk: %s", why, extra={"action": "journal_waits"})
        self._waits = True

    def _say_goes_on(self) -> None:
        if self._waits:
            log.info("durable jobs are written again", extra={"action": "journal_goes_on"})
        self._waits = False


def _urgency(error: Exception) -> int:
    """What is to be cleared up first: no answer, then a conflict."""
    if isinstance(error, ApiError):
        return 2 - (error.err_code == WRONG_LAST_SEQUENCE)
    return 0
