"""What is forgotten, and when: rows by age, and by size the oldest first; the space is given back.

A step is one table and at most one day of it, so that what is noted meanwhile does not wait for long. It returns in how
many seconds the next one should follow; None: there is nothing to do until the next round.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from outbid_node.history.damage import remove
from outbid_node.history.frames import Settings
from outbid_node.history.store import Store, quoted
from outbid_node.history.writer import Task, Writer

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

DAY_MS = 86_400_000

EVERY_S, FIRST_S, AGAIN_S = 600.0, 60.0, 0.2

ROLLED_DAYS = 730.0
"""How long the means that samples are rolled up to are kept."""

FULL, ENOUGH = 1.0, 0.9
"""Parts of `max_mib`: above the first rows go, until less than the second is used."""

WORTH_MIB = 8
"""A file with less free space than this is not rewritten."""


class Kept(NamedTuple):
    """A table, the column that says how old a row is, and how many days are spared while others can go for size."""

    table: str
    column: str
    least_days: float


RAW = (
    Kept("bids", "at_ms", 7),
    Kept("auctions", "opened_ms", 7),
    Kept("samples", "at_ms", 7),
    Kept("attempts", "ended_ms", 14),
    Kept("events", "at_ms", 14),
    Kept("jobs", "ended_ms", 30),
    Kept("runs", "ended_ms", 30),
    Kept("loads", "at_ms", 30),
)
"""In the order in which they go when the file is too large: first what is much and explains little later on."""

YEARS = (Kept("usage", "hour_ms", 0), Kept("calibrations", "at_ms", 0))
"""Little, and kept for years."""


class Retention:
    def __init__(self, store: Store, writer: Writer, settings: Settings) -> None:
        self._store, self._writer, self._settings = store, writer, settings
        self.task = Task(self.step, EVERY_S, FIRST_S)
        self.rewritten = 0
        self._shrinking = self._forgot = False

    def step(self, connection: DuckDBPyConnection) -> float | None:
        if self._by_age(connection) or self._by_size(connection):
            self._forgot = True
            return AGAIN_S
        if self._forgot:  # what was deleted is free space only now
            connection.execute("CHECKPOINT")
            self._forgot = False
        if self._is_hollow(connection):
            self._writer.renew(lambda: rewrite(self._store.file))
            self.rewritten += 1
        return None

    # -- by age ---------------------------------------------------------------------------------------------------

    def _by_age(self, connection: DuckDBPyConnection) -> bool:
        return any(_forget(connection, kept, before_ms) for kept, before_ms in self._limits())

    def _limits(self) -> Iterator[tuple[Kept, int]]:
        now_ms = time.time_ns() // 1_000_000
        for kept in RAW:
            days = ROLLED_DAYS if kept.table == "samples" else self._settings.keep_days
            yield kept, now_ms - round(days * DAY_MS)
        for kept in YEARS:
            yield kept, now_ms - round(self._settings.keep_years * 365 * DAY_MS)

    # -- by size --------------------------------------------------------------------------------------------------

    def _by_size(self, connection: DuckDBPyConnection) -> bool:
        """Let the oldest day of some table go, if the file holds too much."""
        most = self._settings.max_mib << 20
        limit = ENOUGH if self._shrinking else FULL
        self._shrinking = size_of(connection).used > limit * most
        if not self._shrinking:
            return False
        now_ms = time.time_ns() // 1_000_000
        victims = [(kept, now_ms - round(kept.least_days * DAY_MS)) for kept in RAW] + [(kept, now_ms) for kept in RAW]
        found = any(_forget(connection, kept, before_ms) for kept, before_ms in victims)
        connection.execute("CHECKPOINT")
        return found

    # -- space ----------------------------------------------------------------------------------------------------

    def _is_hollow(self, connection: DuckDBPyConnection) -> bool:
        size = size_of(connection)
        return size.free > size.used and size.free > WORTH_MIB << 20


class Size(NamedTuple):
    """Bytes of the file."""

    used: int
    free: int


def size_of(connection: DuckDBPyConnection) -> Size:
    found = connection.execute("SELECT block_size, used_blocks, free_blocks FROM pragma_database_size()").fetchone()
    assert found is not None
    block, used, free = (int(value) for value in found)
    return Size(block * used, block * free)


def _forget(connection: DuckDBPyConnection, kept: Kept, before_ms: int) -> bool:
    """Delete one day, the oldest, of what is older; whether there was any."""
    oldest = connection.execute(f"SELECT min({kept.column}) FROM {kept.table}").fetchone()
    if oldest is None or oldest[0] is None or oldest[0] >= before_ms:
        return False
    until_ms = min(before_ms, oldest[0] + DAY_MS)
    connection.execute(f"DELETE FROM {kept.table} WHERE {kept.column} < ?", [until_ms])
    return True


def rewrite(file: Path) -> None:
    """Copy the closed file, without its holes, and put the copy in its place. The old one stays if that fails."""
    import duckdb

    copy = file.with_name(f"{file.name}.new")
    remove(copy)
    try:
        with duckdb.connect(config={"threads": 1, "memory_limit": "128MiB"}) as connection:
            connection.execute(f"ATTACH {quoted(file)} AS old (READ_ONLY)")
            connection.execute(f"ATTACH {quoted(copy)} AS new")
            connection.execute("COPY FROM DATABASE old TO new")
        copy.chmod(0o600)
        copy.replace(file)
    except (duckdb.Error, OSError) as error:
        log.warning("the history was not made smaller: %s", error, extra={"action": "history_not_rewritten"})
    finally:
        remove(copy)
