"""The one thread that writes to the file: batches in the order in which they came, each in one transaction; between
them what the file needs from time to time (retention, roll-ups).
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from outbid_node.history.damage import Unusable, is_damage
from outbid_node.history.frames import Batch
from outbid_node.history.schema import insertion
from outbid_node.history.store import Store, quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

TICK_S, REST_S = 1.0, 60.0
"""The thread wakes without a batch after so long at least, and at most."""

AGAIN_S = 60.0
"""How long a file that cannot be used is left alone before it is tried again."""

REPAIRS, PAUSE_S = 3, 600.0
"""So often in a row a file is put aside or opened anew; then something is wrong that this does not mend, and it is left
alone for a while.
"""

Step = Callable[["DuckDBPyConnection"], float | None]


class Task:
    """Something done in the writer's thread every `every_s` seconds; a step may say how soon it wants to go on (s)."""

    def __init__(self, step: Step, every_s: float, first_s: float) -> None:
        self.step = step
        self.every_s = every_s
        self.due = time.monotonic() + first_s


class Writer:
    """`on_written(seq, dropped)` is called for each batch, `on_state()` when the file can be used or no more; in its
    thread.
    """

    def __init__(self, store: Store, on_written: Callable[[int, int], None], on_state: Callable[[bool], None]) -> None:
        self.store = store
        self.tasks: list[Task] = []
        self._on_written, self._on_state = on_written, on_state
        self._batches: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
        self._connection: DuckDBPyConnection | None = None
        self._prepared_on: DuckDBPyConnection | None = None
        self._prepared: set[str] = set()
        self._repairs = 0
        self._try_at = 0.0
        self._complained = ""
        self._told: tuple[bool, str] | None = None
        self._thread = threading.Thread(target=self._run, name="history-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, batch: Batch) -> None:
        self._batches.put(batch)

    def suspect(self, error: BaseException) -> None:
        """A reader met this error; if it shows damage the file is put aside."""
        if is_damage(error):
            self._batches.put(error)

    def close(self) -> None:
        """Write what was added and close the file."""
        self._batches.put(None)
        self._thread.join()

    # -- its thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._open_if_due()
        while self._next():
            self._open_if_due()
            self._guarded(self._run_tasks)
            self._tell()
        self._connection = self._prepared_on = None
        self.store.close()

    def _next(self) -> bool:
        """What came next, or a tick without anything; False at the end."""
        self._tell()
        try:
            found = self._batches.get(timeout=self._rest_s())
        except queue.Empty:
            return True
        if found is None:
            return False
        if isinstance(found, BaseException):
            self._mend(found)
        else:
            self._on_written(found.seq, self._write(found))
        return True

    def _rest_s(self) -> float:
        """Until something is due."""
        due = self._try_at if self._connection is None else min((task.due for task in self.tasks), default=math.inf)
        return min(max(due - time.monotonic(), TICK_S), REST_S)

    def _open_if_due(self) -> None:
        if self._connection is None and time.monotonic() >= self._try_at:
            self._try_at = time.monotonic() + AGAIN_S
            self._guarded(self._open)

    def _open(self) -> None:
        self._connection = self.store.open()

    def _tell(self) -> None:
        told = (self._connection is not None, self.store.trouble)
        if told != self._told:
            self._told = told
            self._on_state(told[0])

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self._complain(error)
            self._mend(error)

    # -- batches --------------------------------------------------------------------------------------------------

    def _write(self, batch: Batch) -> int:
        """All of it or, if that fails, each table on its own; how many rows are lost."""
        try:
            self._insert(batch.tables)
            self._repairs = 0
            return 0
        except Exception as error:
            self._complain(error)
            self._mend(error)
        rest = {table: rows for table, rows in batch.tables.items() if not self._insert_alone(table, rows)}
        return batch.rows if rest.keys() == batch.tables.keys() else len(rest)

    def _insert_alone(self, table: str, rows: str) -> bool:
        try:
            self._insert({table: rows})
        except Exception as error:
            self._complain(error)
            return False
        return True

    def _insert(self, tables: dict[str, str]) -> None:
        connection = self._connection
        if connection is None:
            raise Unusable(self.store.trouble)
        connection.begin()
        try:
            for table, rows in tables.items():
                self._prepare(connection, table)
                connection.execute(f"EXECUTE add_{table}({quoted(rows)})")  # it takes no parameters
            connection.commit()
        except BaseException:
            with contextlib.suppress(Exception):
                connection.rollback()
            raise

    def _prepare(self, connection: DuckDBPyConnection, table: str) -> None:
        if self._prepared_on is not connection:
            self._prepared_on = connection
            self._prepared.clear()
        if table not in self._prepared:
            connection.execute(f"PREPARE add_{table} AS {insertion(table)}")
            self._prepared.add(table)

    # -- what else is done here -----------------------------------------------------------------------------------

    def _run_tasks(self) -> None:
        """At most one step between two batches, so that those do not wait for long."""
        now = time.monotonic()
        due = [task for task in self.tasks if now >= task.due]
        if due and self._connection is not None:
            task = min(due, key=lambda task: task.due)
            task.due = now + task.every_s
            again_s = task.step(self._connection)
            if again_s is not None:
                task.due = time.monotonic() + again_s

    def renew(self, swap: Callable[[], None]) -> None:
        """Close the file, let `swap` put another in its place, open it again. For tasks."""
        self._connection = self._prepared_on = None
        self.store.close(reopening=True)
        try:
            swap()
        finally:
            self._connection = self.store.open()

    def _mend(self, error: BaseException) -> None:
        """After an error that leaves the file or DuckDB's instance unusable: begin anew. Others need nothing."""
        import duckdb

        damaged = is_damage(error)
        if not damaged and not isinstance(error, duckdb.FatalException | duckdb.InternalException):
            return
        self._connection = self._prepared_on = None
        self._repairs += 1
        if self._repairs > REPAIRS:
            self.store.close()
            self.store.unusable = f"there is no history: it failed again and again ({str(error)[:200]})"
            self._try_at, self._repairs = time.monotonic() + PAUSE_S, 0
            return
        try:
            if not damaged:
                self.store.close(reopening=True)
            self._connection = self.store.replace(error) if damaged else self.store.open()
        except Unusable as unusable:
            self._complain(unusable)

    def _complain(self, error: BaseException) -> None:
        """Once for each reason in a row."""
        text = f"{type(error).__name__}: {str(error)[:300]}"
        if text != self._complained:
            self._complained = text
            log.warning("%s", text, extra={"action": "history_failed"})
