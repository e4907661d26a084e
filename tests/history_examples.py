"""The queries of docs/history.md, and a history to run them on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from duckdb import DuckDBPyConnection

from outbid_node.history.rows import Row
from outbid_node.history.schema import as_json, insertion, table_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "history.md"


class Example(NamedTuple):
    """`over` is empty for a query that is for one node."""

    question: str
    sql: str
    over: str


def examples() -> list[Example]:
    return list(_read(PAGE.read_text("utf-8")))


def _read(text: str) -> Iterator[Example]:
    """Each block of SQL, the paragraph before it, and the block that is run over its answers, if there is one."""
    before, *blocks = re.split(r"^```sql$", text, flags=re.MULTILINE)
    for block in blocks:
        sql, after = block.split("```\n", 1)
        over = after.removeprefix("```sql over\n").partition("```")[0] if after.startswith("```sql over\n") else ""
        yield Example(" ".join(before.rstrip().rpartition("\n\n")[2].split()), sql.strip(), over.strip())
        before = after


def row(kind: type[Row], /, **given: Any) -> Row:
    """With something harmless in each field that is not given."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        if field.name in given:
            values[field.name] = given[field.name]
        elif field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT:
            values[field.name] = _harmless(str(field.type))
    return kind(**values)


def _harmless(type: str) -> Any:
    harmless: Mapping[str, Any] = {"dict": {}, "str": "", "int": 0, "float": 0.0, "bool": False}
    return None if "None" in type else next(value for name, value in harmless.items() if name in type)


def insert(connection: DuckDBPyConnection, *rows: Row) -> None:
    for one in rows:
        text, _ = as_json([one])
        connection.execute(insertion(table_of(type(one))), [text])
