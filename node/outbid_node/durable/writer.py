"""Group commit: changes of durable jobs, written one atomic and synced batch of JetStream at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from outbid_contracts.durable import DurableJob
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import JobId
from outbid_node.client import Bus, NoResponders
from outbid_node.durable.entry import UNKNOWN, Change, Entry, Keys, Verb, judge, refusal
from outbid_node.durable.stream import WRONG_LAST_SEQUENCE, ApiError, Stored, Stream

log = logging.getLogger(__name__)

BATCH_RECORDS = 500
"""Two messages for a job that ends, and an atomic batch takes 1000."""

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
            await self._wake.wait()
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
        groups = [entry.messages(self._keys, self.revisions.get(entry.id, 0)) for entry in batch]
        messages = [message for group in groups for message in group]
        seq = await self._stream.store(messages) - len(messages)
        done = []
        for entry, group in zip(batch, groups, strict=True):
            seq += len(group)
            done.append((entry, seq))
        self._settle(done)

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
            else:
                self.revisions.pop(entry.id, None)
            entry.succeed()
        self._say_goes_on()
        changes = [Change(entry.id, entry.record, entry.verb == "end") for entry, _ in done]
        for hook in self.on_commit:
            try:
                hook(changes)
            except Exception as error:
                log.exception("after a commit: %s", error, extra={"action": "journal_hook_failed"})

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
