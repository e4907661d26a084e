"""Answers of the history as text: cells of a table, CSV. No Textual."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from outbid import Table
from outbid.cli.sql import cell as written

OVER = re.compile(r"^[ \t]*--[ \t]*over\b.*$", re.MULTILINE | re.IGNORECASE)
"""The line between a query for every node and the one over their answers."""

WIDEST = 60
"""Characters of a cell."""

_NUMBER = re.compile(r"(U?(TINY|SMALL|BIG|HUGE)INT|U?INTEGER|DOUBLE|FLOAT|DECIMAL\(\d+,\d+\))\Z")


def parts(text: str) -> tuple[str, str | None]:
    """The query and the one over its answers.

    >>> parts("SELECT 1")
    ('SELECT 1', None)
    >>> parts("FROM runs\\n-- over\\nSELECT count(*) FROM answers\\n")
    ('FROM runs', 'SELECT count(*) FROM answers')
    """
    found = OVER.search(text)
    if found is None:
        return text.strip(), None
    return text[: found.start()].strip(), text[found.end() :].strip() or None


def joined(sql: str, over: str) -> str:
    return f"{sql}\n\n-- over the answers of all nodes:\n{over}" if over else sql


def is_number(type: str) -> bool:
    return _NUMBER.match(type) is not None


def cell(value: Any) -> str:
    """As `outbid sql` writes it, on one line.

    >>> cell(None), cell(True), cell(1.23456789), cell({"a": 1.0}), cell([1, "x"]), cell("a\\nb")
    ('NULL', 'true', '1.23457', 'a=1', '1, x', 'a b')
    """
    return _short("".join(sign if sign.isprintable() else " " for sign in written(value)))


def _short(text: str) -> str:
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"


def remark(found: Table, took_s: float) -> str:
    """How many rows, from how long, and what is missing."""
    rows = "1 row" if len(found) == 1 else f"{len(found):,} rows"
    parts = [f"{rows} in {took_s:.2f} s"]
    if found.truncated:
        parts.append("there are more" + (f" on {', '.join(found.cut)}" if found.cut else ""))
    parts += [f"without {silent.name}: {silent.why}" for silent in found.silent]
    return " · ".join(parts)


def as_csv(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """As RFC 4180 has it: nothing for NULL, JSON for lists and maps.

    >>> as_csv(["a", "b"], [(1, None), ("x,y", {"k": 1})])
    'a,b\\n1,\\n"x,y","{""k"":1}"\\n'
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_csv_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return msgspec.json.encode(value).decode() if isinstance(value, list | dict | tuple) else value
