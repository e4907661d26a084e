"""All of the history, or one table, as Parquet files: for other programs, and to be kept elsewhere."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from outbid_node.history.schema import KINDS
from outbid_node.history.store import quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

PREFIX = "export-"

_one = threading.Lock()


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    tables: tuple[str, ...] = ()
    """All, if empty."""


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """`folder` holds one file for each table, `TABLE.parquet`."""

    folder: str
    rows: dict[str, int]


def export(connection: DuckDBPyConnection, payload: bytes, out: Path) -> bytes:
    """One moment of all tables. Raises ValueError for a table that there is not, or if another export is under way."""
    tables = msgspec.msgpack.decode(payload, type=Wanted).tables or tuple(KINDS)
    if unknown := [table for table in tables if table not in KINDS]:
        raise ValueError(f"there is no table {unknown[0]!r}; there are {', '.join(KINDS)}")
    if not _one.acquire(blocking=False):
        raise ValueError("another export is under way; try again when it is done")
    try:
        return _exported(connection, tables, out)
    finally:
        _one.release()


def _exported(connection: DuckDBPyConnection, tables: Sequence[str], out: Path) -> bytes:
    """What is left of earlier ones is deleted, so that the disk holds one at most."""
    for earlier in out.glob(f"{PREFIX}*"):
        shutil.rmtree(earlier, ignore_errors=True)
    folder = out / f"{PREFIX}{secrets.token_hex(6)}"
    folder.mkdir(mode=0o700)
    try:
        connection.begin()
        rows = {table: _write(connection, table, folder / f"{table}.parquet") for table in tables}
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return msgspec.msgpack.encode(Exported(folder=str(folder), rows=rows))


def _write(connection: DuckDBPyConnection, table: str, file: Path) -> int:
    copied = connection.execute(f"COPY {table} TO {quoted(file)} (FORMAT parquet, COMPRESSION zstd)").fetchone()
    file.chmod(0o600)
    return int(copied[0]) if copied else 0
