"""Joining what the nodes answered to one query, in a process of its own: `python -m outbid_node.history.joining`.

What a peer sends is not trusted. A file that DuckDB cannot read costs that node's part; one that takes the process with
it costs the process, and is then found by trying each alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from outbid_contracts.codec import decode, encode
from outbid_contracts.errors import BadQuery, InvalidRequest, OutbidError, QueryTooLong
from outbid_contracts.history import Column, Told
from outbid_contracts.messages import Message
from outbid_node.history.limits import keep_small
from outbid_node.history.sandbox import Query, message_of, select
from outbid_node.history.values import RESTORED, quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

ANSWERS = "answers"
"""The joined table."""

START_S = 15.0
"""How long the process may take beside the query itself: to start, and to read the parts."""

MEMORY_MIB = 512


class Part(Message, frozen=True, kw_only=True):
    """What the node called `name` answered; its Parquet is in `file`."""

    name: str
    columns: tuple[Column, ...]
    file: str


class Order(Message, frozen=True, kw_only=True):
    """Join the parts and run `query` over `answers`. `rows`: of each part, at most."""

    folder: str
    parts: tuple[Part, ...]
    query: Query
    rows: int


class Joined(Message, frozen=True, kw_only=True):
    """`refused`: parts that could not be joined, by file, and why."""

    told: Told = Told()
    refused: dict[str, str]


# -- the daemon's side -------------------------------------------------------------------------------------------------


class Joiner:
    """One joining: `keep` each part as it comes, then `join`. As a context it removes its folder at the end."""

    def __init__(self, folder: Path) -> None:
        """`folder` is where this one's folder is made, private to the user."""
        self._folder = folder / f"join-{secrets.token_hex(8)}"
        self._parts: dict[str, Part] = {}
        self.program: Sequence[str] = (sys.executable, "-m", __name__)

    async def __aenter__(self) -> Joiner:
        await asyncio.to_thread(self._folder.mkdir, 0o700, parents=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def keep(self, key: str, name: str, columns: tuple[Column, ...], parquet: bytes) -> None:
        """`key` says in which order the parts come, and names one that is refused."""
        file = self._folder / f"{secrets.token_hex(8)}.parquet"
        await asyncio.to_thread(file.write_bytes, parquet)
        self._parts[key] = Part(name=name, columns=columns, file=str(file))

    async def join(self, query: Query, rows: int) -> tuple[Told, dict[str, str]]:
        """What the query over the joined parts gives, and why parts are not in it, by key. Raises OutbidError."""
        parts = [self._parts[key] for key in sorted(self._parts)]
        joined = await self._joined(parts, query, rows)
        keys = {part.file: key for key, part in self._parts.items()}
        return joined.told, {keys[file]: why for file, why in joined.refused.items()}

    async def _joined(self, parts: Sequence[Part], query: Query, rows: int) -> Joined:
        joined = await self._run(parts, query, rows)
        if joined is not None:
            return joined
        alone = msgspec.structs.replace(query, sql=f"FROM {ANSWERS}", limit=1, format="rows")
        breaking = {part.file for part in parts if await self._run([part], alone, rows) is None}
        sound = [part for part in parts if part.file not in breaking]
        joined = await self._run(sound, query, rows) if breaking else None
        if joined is None:
            raise OutbidError("the answers of the nodes could not be joined; the daemon's log says more")
        broken = dict.fromkeys(breaking, "its answer is damaged")
        return msgspec.structs.replace(joined, refused=joined.refused | broken)

    async def _run(self, parts: Sequence[Part], query: Query, rows: int) -> Joined | None:
        """None if the process died of it. Raises QueryTooLong."""
        order = Order(folder=str(self._folder), parts=tuple(parts), query=query, rows=rows)
        process = await asyncio.create_subprocess_exec(
            *self.program,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(query.timeout_s + START_S):
                out, err = await process.communicate(encode(order))
        except TimeoutError as error:
            raise QueryTooLong("joining the answers took too long; select less on each node") from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        if process.returncode != 0:
            told = err.decode(errors="replace").strip()[-500:]
            log.warning("joining ended with %s: %s", process.returncode, told, extra={"action": "joining_died"})
            return None
        joined: Joined = decode(out, Joined)
        return joined


# -- the process's side ------------------------------------------------------------------------------------------------


def joined(order: Order) -> Joined:
    """Never fails because of one part."""
    import duckdb

    folder = Path(order.folder)
    connection = _opened(folder)
    refused: dict[str, str] = {}
    tables: dict[str, str] = {}
    for number, part in enumerate(order.parts):
        try:
            connection.execute(f"CREATE TABLE part{number} AS {_part(part, order.rows)}")
            tables[f"part{number}"] = part.file
        except (duckdb.Error, MemoryError) as error:
            refused[part.file] = f"its answer cannot be read: {_short(error, folder)}"
    try:
        refused |= _unite(connection, tables, folder)
        return Joined(told=select(connection, order.query, [ANSWERS], folder), refused=refused)
    except OutbidError as error:
        return Joined(told=Told(error=error.body()), refused=refused)
    except duckdb.Error as error:
        return Joined(told=Told(error=BadQuery(message_of(error, folder / "x")).body()), refused=refused)


def _opened(folder: Path) -> DuckDBPyConnection:
    import duckdb

    connection = duckdb.connect(
        ":memory:",
        config={
            "threads": 1,
            "memory_limit": f"{MEMORY_MIB}MiB",
            "temp_directory": str(folder / "spill"),
            "max_temp_directory_size": f"{MEMORY_MIB}MiB",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "python_enable_replacements": False,
        },
    )
    connection.execute(f"SET allowed_directories = [{_literal(folder)}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _part(part: Part, rows: int) -> str:
    """A column that is called `node` itself gives way to the node's name."""
    taken = {column.name.lower() for column in part.columns}
    chosen = [f"{_literal(part.name)} AS node"]
    for column in part.columns:
        name = column.name if column.name.lower() != "node" else _free("node", taken)
        cast = f"CAST({quoted(column.name)} AS {column.type})" if column.type in RESTORED else quoted(column.name)
        chosen.append(f"{cast} AS {quoted(name)}")
    return f"SELECT {', '.join(chosen)} FROM read_parquet({_literal(part.file)}) LIMIT {int(rows)}"


def _free(name: str, taken: set[str]) -> str:
    return next(f"{name}_{n}" for n in range(1, len(taken) + 2) if f"{name}_{n}" not in taken)


def _unite(connection: DuckDBPyConnection, tables: dict[str, str], folder: Path) -> dict[str, str]:
    """Make `answers`; returns the files left out, because their types do not go with those before, and why."""
    import duckdb

    if not tables:
        raise InvalidRequest("no node gave an answer that can be joined")
    try:
        connection.execute(f"CREATE TABLE {ANSWERS} AS {_union(list(tables))}")
        return {}
    except duckdb.ConversionException:
        pass
    refused: dict[str, str] = {}
    first, *others = tables
    fitting = [first]
    for table in others:
        try:
            connection.execute(f"CREATE OR REPLACE TEMP TABLE tried AS {_union([*fitting, table])}")
            fitting.append(table)
        except duckdb.ConversionException as error:
            refused[tables[table]] = f"its answer does not go with the others: {_short(error, folder)}"
    connection.execute(f"CREATE TABLE {ANSWERS} AS {_union(fitting)}")
    return refused


def _union(tables: Sequence[str]) -> str:
    return " UNION ALL BY NAME ".join(f"FROM {table}" for table in tables)


def _literal(text: object) -> str:
    return "'" + str(text).replace("'", "''") + "'"


def _short(error: BaseException, folder: Path) -> str:
    return message_of(error, folder / "x").partition("\n")[0][:200]


def main() -> int:
    keep_small()
    order = decode(sys.stdin.buffer.read(), Order)
    end = threading.Timer(order.query.timeout_s + START_S, os._exit, (1,))  # also if nobody is left to end it
    end.daemon = True
    end.start()
    sys.stdout.buffer.write(encode(joined(order)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
