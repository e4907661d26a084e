"""Running one SELECT of a person, in the process that has the file: read-only, within a time, so many rows and bytes.

`answer` is called there in a thread with a connection of its own. What keeps it from files, the network and settings
holds for the whole instance, see `store`; what keeps it from all memory is a limit on the process, because DuckDB's own
does not bind a single value (`repeat`, `string_agg`: 14 GB under a limit of 256 MB, measured with 2.0).
"""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from outbid_contracts.codec import decode, encode
from outbid_contracts.errors import BadQuery, InvalidRequest, OutbidError, QueryTooLong
from outbid_contracts.history import MAX_ANSWER_BYTES, Column, Told
from outbid_contracts.messages import Message
from outbid_node.history.statements import checked
from outbid_node.history.values import as_row_value, in_parquet, reader

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

WATCH_S = 0.05
FILE_BYTES = 4 * MAX_ANSWER_BYTES
"""A Parquet file that grows beyond this is given up: a few rows can have gigabytes."""

TRIES = 4
"""Parquet files written until one is small enough for the bus."""

FIRST_ROWS, MOST_ROWS = 16, 2048
"""Rows that are fetched at once: the first have shown how large they are before many are."""


class Query(Message, frozen=True, kw_only=True):
    """`peer` is Parquet for another node, which makes of it what it was, see `values.RESTORED`."""

    sql: str
    limit: int
    timeout_s: float
    format: Literal["rows", "parquet", "peer"] = "rows"


def answer(connection: DuckDBPyConnection, verb: str, payload: bytes, out: Path) -> bytes:
    """A `Told` for a `Query`. Raises only what says that the file or DuckDB itself is damaged."""
    import duckdb

    asked = decode(payload, Query)
    try:
        return encode(select(connection, asked, _tables(connection), out))
    except OutbidError as error:
        return encode(Told(error=error.body()))
    except (duckdb.FatalException, duckdb.InternalException, duckdb.IOException, duckdb.SerializationException):
        raise
    except duckdb.Error as error:
        return encode(Told(error=BadQuery(message_of(error, out)).body()))
    except (MemoryError, RecursionError):
        return encode(Told(error=_too_much().body()))


def select(connection: DuckDBPyConnection, asked: Query, tables: Collection[str], out: Path) -> Told:
    """Raises InvalidRequest, QueryTooLong, duckdb.Error."""
    import duckdb

    connection.execute("BEGIN TRANSACTION READ ONLY")
    try:
        with _Guard(connection, asked.timeout_s) as guard:
            try:
                sql, explains = checked(connection, asked.sql, tables)
                return _Selection(connection, asked, guard, sql, explains, out).told()
            except duckdb.InterruptException as error:
                raise guard.reason() from error
            except duckdb.OutOfMemoryException as error:
                raise _too_much() from error
    finally:
        with contextlib.suppress(duckdb.Error):
            connection.execute("ROLLBACK")


class _Guard:
    """Interrupts the connection when its time is over, or when the file it writes is too large."""

    def __init__(self, connection: DuckDBPyConnection, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._ends = time.monotonic() + timeout_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="history-guard", daemon=True)
        self.file: Path | None = None
        self.too_large = False

    def __enter__(self) -> _Guard:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        """For work in Python, which nothing interrupts."""
        if time.monotonic() > self._ends:
            raise self.reason()

    def reason(self) -> OutbidError:
        if self.too_large:
            return InvalidRequest(
                f"the answer is too large (more than {FILE_BYTES // 2**20} MiB); select fewer columns or rows"
            )
        return QueryTooLong(
            f"the query was stopped after {self._timeout_s:g} s; select less, or allow it more time (up to 60 s)"
        )

    def _watch(self) -> None:
        """Again and again: an interrupt between two statements is lost."""
        while not self._over.wait(WATCH_S):
            if self.file is not None and _size(self.file) > FILE_BYTES:
                self.too_large = True
            if self.too_large or time.monotonic() > self._ends:
                self._connection.interrupt()


class _Selection:
    def __init__(
        self, connection: DuckDBPyConnection, asked: Query, guard: _Guard, sql: str, explains: bool, out: Path
    ) -> None:
        self._connection = connection
        self._asked = asked
        self._guard = guard
        self._explains = explains
        self._from = f"FROM (\n{sql}\n)"
        self._sql = sql
        self._out = out

    def told(self) -> Told:
        if self._explains:
            if self._asked.format != "rows":
                raise InvalidRequest("EXPLAIN gives rows for people, on one node")
            return self._explanation()
        described = self._connection.execute(f"DESCRIBE SELECT * {self._from}").fetchall()
        columns = tuple(Column(name=row[0], type=row[1]) for row in described)
        return self._rows(columns) if self._asked.format == "rows" else self._parquet(columns)

    def _explanation(self) -> Told:
        self._connection.execute(self._sql)
        columns = tuple(Column(name=name, type="VARCHAR") for name in ("explain_key", "explain_value"))
        rows, truncated = self._fetch(columns)
        return Told(columns=columns, rows=rows, truncated=truncated)

    def _rows(self, columns: tuple[Column, ...]) -> Told:
        chosen = ", ".join(as_row_value(column.name, column.type) for column in columns)
        self._connection.execute(f"SELECT {chosen} {self._from} LIMIT {self._asked.limit + 1}")
        rows, truncated = self._fetch(columns)
        return Told(columns=columns, rows=rows, truncated=truncated)

    def _fetch(self, columns: Sequence[Column]) -> tuple[tuple[tuple[Any, ...], ...], bool]:
        """What fits `limit` and a message of the bus, and whether there was more."""
        readers = [(index, read) for index, column in enumerate(columns) if (read := reader(column.type))]
        kept: list[tuple[Any, ...]] = []
        size, step = 0, FIRST_ROWS
        while found := self._connection.fetchmany(step):
            self._guard.check()
            for row in _read(found, readers):
                size += _bytes_of(row)
                if len(kept) == self._asked.limit or size > MAX_ANSWER_BYTES:
                    return self._unless_none(kept), True
                kept.append(row)
            step = min(2 * step, MOST_ROWS) if size < MAX_ANSWER_BYTES // 8 else FIRST_ROWS
        return tuple(kept), False

    def _unless_none(self, kept: list[tuple[Any, ...]]) -> tuple[tuple[Any, ...], ...]:
        if not kept:
            raise InvalidRequest(f"one row has more than {MAX_ANSWER_BYTES // 2**20} MiB; select fewer columns")
        return tuple(kept)

    # -- Parquet --------------------------------------------------------------------------------------------------

    def _parquet(self, columns: tuple[Column, ...]) -> Told:
        limit = self._asked.limit
        for _ in range(TRIES):
            data, rows = self._copied(columns, limit)
            if len(data) <= MAX_ANSWER_BYTES:
                return Told(columns=columns, parquet=data, truncated=rows > limit or limit < self._asked.limit)
            limit = max(1, int(min(limit, rows) * 0.8 * MAX_ANSWER_BYTES / len(data)))
        raise InvalidRequest(f"the rows are too large for {MAX_ANSWER_BYTES // 2**20} MiB; select fewer columns")

    def _copied(self, columns: Sequence[Column], limit: int) -> tuple[bytes, int]:
        """The first `limit` rows as Parquet, and how many rows there are (at most `limit` + 1)."""
        for_peer = self._asked.format == "peer"
        chosen = ", ".join(in_parquet(column.name, column.type, for_peer=for_peer) for column in columns)
        file = self._guard.file = self._out / f"answer-{secrets.token_hex(8)}.parquet"
        try:
            rows = self._copy(chosen, limit + 1, file)
            if rows > limit:
                self._copy(chosen, limit, file)
            return file.read_bytes(), rows
        finally:
            self._guard.file = None
            file.unlink(missing_ok=True)

    def _copy(self, chosen: str, limit: int, file: Path) -> int:
        """Returns how many rows were written."""
        copy = f"COPY (SELECT {chosen} {self._from} LIMIT {limit}) TO {_literal(file)}"
        counted = self._connection.execute(f"{copy} (FORMAT parquet, COMPRESSION zstd)").fetchone()
        return int(counted[0]) if counted else 0


def _read(rows: Sequence[tuple[Any, ...]], readers: Sequence[tuple[int, Any]]) -> Iterator[tuple[Any, ...]]:
    for row in rows:
        if not readers:
            yield row
            continue
        values = list(row)
        for index, read in readers:
            values[index] = read(values[index])
        yield tuple(values)


def _bytes_of(row: tuple[Any, ...]) -> int:
    """In whichever of the two formats it is longer."""
    return max(len(msgspec.json.encode(row)), len(msgspec.msgpack.encode(row))) + 1


def _tables(connection: DuckDBPyConnection) -> list[str]:
    """Those of this file, which may be another version's."""
    rows = connection.execute(
        "SELECT table_name FROM information_schema.tables"
        " WHERE table_schema = 'main' AND NOT starts_with(table_name, '_')"
    ).fetchall()
    return [str(row[0]) for row in rows]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _literal(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _too_much() -> BadQuery:
    return BadQuery("the query needs more memory than it may have; select or group less")


_LINE = re.compile(r"^LINE (\d+):", re.MULTILINE)


def message_of(error: BaseException, out: Path) -> str:
    """DuckDB's own words, with the lines counted as in the query and without paths of this machine."""
    text = str(error).partition("\nPossible solutions")[0].replace(str(out.parent), "…")
    if "Parser Error" not in text:
        text = _LINE.sub(lambda found: f"LINE {max(1, int(found[1]) - 1)}:", text)
    return text.strip()[:2000]
