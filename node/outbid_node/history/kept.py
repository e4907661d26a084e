"""The history of a node as its parts use it: what is noted goes in batches to the process that keeps the file."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from outbid_node import pace
from outbid_node.history.child import CLOSE_S, Child
from outbid_node.history.damage import Unusable, put_aside
from outbid_node.history.frames import (
    Answer,
    Ask,
    Batch,
    Opened,
    Read,
    Refused,
    Report,
    Settings,
    Written,
    unpack_rows,
)
from outbid_node.history.interface import Note
from outbid_node.history.rows import Row
from outbid_node.history.schema import as_json, table_of
from outbid_node.history.store import FILE, OUT

log = logging.getLogger(__name__)

BATCH = 1000
UNWRITTEN = 8
"""Batches on their way; more wait as notes."""

QUEUE = 20_000
"""Notes that may wait (about 20 MB): some seconds of the worst storm, or of a disk that stands still."""

READ_WITHIN_S = 30.0
RESTART_S, RESTART_MOST_S = 0.5, 60.0
CRASHES = 2
"""A process that ends so often in a row before it has opened the file is taken to be killed by what is in it."""


class KeptHistory:
    """`run` keeps the process alive and hands it what was noted; `close` writes the rest."""

    def __init__(self, folder: Path, settings: Settings | None = None) -> None:
        self.folder = folder
        self.out = folder / OUT
        """Where the process may write files for us."""
        self.trouble = ""
        """What is or was wrong with the file, in a sentence for people; empty if nothing was."""
        self.dropped = 0
        """Rows that were noted and are not kept."""
        self.usable = False
        self._replaced = ""
        self._settings = settings or Settings()
        self._notes: deque[Note] = deque()
        self._unwritten: dict[int, Batch] = {}
        self._seqs, self._ids = itertools.count(1), itertools.count(1)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._child: Child | None = None
        self._opened = asyncio.Event()
        """It has said whether there is a file that can be used."""
        self._wake = asyncio.Event()
        self._flushed = asyncio.Condition()
        self._crashes = 0
        self._closed = False
        self._pumping = asyncio.Lock()

    # -- for everybody --------------------------------------------------------------------------------------------

    def note(self, note: Note) -> None:
        if len(self._notes) < QUEUE and not self._closed:
            self._notes.append(note)
        else:
            self.dropped += 1

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return unpack_rows(await self._request(Read(next(self._ids), sql, list(parameters)), READ_WITHIN_S))
        except Unusable:
            return []
        except (TimeoutError, RuntimeError) as error:
            log.warning("reading the history: %s", error or "no answer", extra={"action": "history_read_failed"})
            return []

    async def ask(self, verb: str, payload: bytes, timeout_s: float) -> bytes:
        """Let the file's own process answer. Raises Unusable if there is no history, RuntimeError for what it could not
        do, TimeoutError: a single step of DuckDB cannot be interrupted, so the process then begins anew.
        """
        child = self._child
        try:
            return await self._request(Ask(next(self._ids), verb, payload), timeout_s)
        except TimeoutError:
            if child is not None:
                child.kill()
            raise

    async def flush(self) -> None:
        """Return when what has been noted can be read, or is lost."""
        await self._pump()
        last = max(self._unwritten, default=0)
        async with self._flushed:
            await self._flushed.wait_for(lambda: self._closed or not any(seq <= last for seq in self._unwritten))

    async def _request(self, order: Read | Ask, timeout_s: float) -> bytes:
        async with asyncio.timeout(timeout_s):
            await self._opened.wait()
            if self._child is None or not self.usable:
                raise Unusable(self.trouble or "the history is closed")
            answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            self._waiting[order.id] = answer
            self._child.send(order)
            try:
                return await answer
            finally:
                del self._waiting[order.id]

    # -- the process ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns before the file is open; whoever reads waits for that."""
        try:
            self._child = await Child.start(self.folder, self._settings, self._heard)
        except OSError as error:
            self._set_state(False, f"there is no history: its process cannot be started ({error})")

    async def run(self) -> None:
        """For as long as the node runs."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pace.left_s())
            self._wake.clear()
            if self._child is None or self._child.ended.done():
                await self._restart()
            await self._pump()

    async def close(self) -> None:
        """The file is whole and free for others when this returns."""
        if self._child is not None and self._child.ended.done():
            self._ended(self._child.ended.result())
            await self._start_again()
        child = self._child
        if child is not None:
            await self._write_rest(child)
        self._closed = True
        if child is not None:
            await child.stop()
        self._fail_all("the history is closed")
        async with self._flushed:
            self._flushed.notify_all()

    async def _write_rest(self, child: Child) -> None:
        rest = asyncio.create_task(self._flush_all())
        await asyncio.wait({rest, child.ended}, timeout=CLOSE_S, return_when=asyncio.FIRST_COMPLETED)
        rest.cancel()

    async def _flush_all(self) -> None:
        await self._opened.wait()
        while self._notes and self.usable:
            await self.flush()

    async def _restart(self) -> None:
        """After a while that grows. What was on its way is sent again; a batch may then be in the file twice."""
        if self._child is not None:
            self._ended(self._child.ended.result())
        await asyncio.sleep(min(RESTART_MOST_S, RESTART_S * 2.0 ** min(self._crashes, 10)))
        await self._start_again()

    async def _start_again(self) -> None:
        await self.start()
        for batch in self._unwritten.values():
            self._send(batch)

    def _ended(self, status: int) -> None:
        log.warning("the history's process ended with status %d", status, extra={"action": "history_ended"})
        self._crashes += 1
        if not self._opened.is_set() and self._crashes >= CRASHES:
            self._put_aside()
        self._opened.clear()
        self._fail_all("the history's process ended")

    def _put_aside(self) -> None:
        with contextlib.suppress(OSError):
            aside = put_aside(self.folder / FILE, "broken")
            self._replaced = f"the history could not be opened; it is kept as {aside.name}, and a new one was begun"
            self._crashes = 0

    def _fail_all(self, why: str) -> None:
        self.usable = False
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Unusable(why))

    # -- what it says ---------------------------------------------------------------------------------------------

    def _heard(self, report: Report) -> None:
        match report:
            case Opened(usable, trouble):
                self._set_state(usable, trouble or self._replaced)
            case Written(seq, dropped):
                self._unwritten.pop(seq, None)
                self.dropped += dropped
                self._crashes = 0
                self._wake_flushers()
            case Answer(id, payload):
                self._settle(id, payload)
            case Refused(id, why, unusable):
                self._settle(id, Unusable(why) if unusable else RuntimeError(why))

    def _set_state(self, usable: bool, trouble: str) -> None:
        if trouble and trouble != self.trouble:
            log.warning("%s", trouble, extra={"action": "history_trouble"})
        self.usable, self.trouble = usable, trouble
        self._opened.set()

    def _settle(self, id: int, found: bytes | Exception) -> None:
        answer = self._waiting.get(id)
        if answer is None or answer.done():
            return
        if isinstance(found, Exception):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def _wake_flushers(self) -> None:
        async def tell() -> None:
            async with self._flushed:
                self._flushed.notify_all()

        self._telling = asyncio.create_task(tell())

    # -- what goes to it ------------------------------------------------------------------------------------------

    async def _pump(self) -> None:
        async with self._pumping:
            while self._notes and len(self._unwritten) < UNWRITTEN:
                notes = [self._notes.popleft() for _ in range(min(BATCH, len(self._notes)))]
                tables, rows, lost = await asyncio.to_thread(_built, notes)
                self.dropped += lost
                if rows:
                    batch = Batch(next(self._seqs), tables, rows)
                    self._unwritten[batch.seq] = batch
                    self._send(batch)

    def _send(self, batch: Batch) -> None:
        if self._child is not None:
            self._child.send(batch)


def _built(notes: Iterable[Note]) -> tuple[dict[str, str], int, int]:
    """The rows by table as JSON, how many they are, and how many were lost."""
    by_kind: dict[type[Row], list[Row]] = {}
    lost = 0
    for note in notes:
        try:
            for row in (note,) if isinstance(note, Row) else note():
                by_kind.setdefault(type(row), []).append(row)
        except Exception:
            lost += 1
            log.exception("a row cannot be built", extra={"action": "history_row_failed"})
    tables = {table_of(kind): as_json(rows) for kind, rows in by_kind.items()}
    kept = sum(count for _, count in tables.values())
    return {table: text for table, (text, _) in tables.items()}, kept, lost + sum(map(len, by_kind.values())) - kept
