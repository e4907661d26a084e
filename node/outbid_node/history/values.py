"""Values of SQL on their way to people and programs: what JSON and MessagePack hold as it is, all else as text.

The casts are DuckDB's own, inside the query: its Python client gives dates after 9999 as another date, and needs a
further package for times with a zone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

_AS_THEY_ARE = re.compile(r"(BOOLEAN|U?(TINY|SMALL|BIG)INT|U?INTEGER|VARCHAR|\"NULL\"|ENUM\(.*)\Z", re.DOTALL)
_FLOATS = ("FLOAT", "DOUBLE")
_WIDE = re.compile(r"(U?HUGEINT|BIGNUM|DECIMAL\(.*\))\Z")
_NESTED = re.compile(r"(STRUCT|MAP|UNION)\(.*|JSON|VARIANT|.*\[\d*\]\Z", re.DOTALL)
_NOT_IN_PARQUET = re.compile(r"(U?HUGEINT|BIGNUM|BIT|TIME WITH TIME ZONE|UNION\(.*)\Z", re.DOTALL)
_HUGE = re.compile(r"\bU?HUGEINT\b")

RESTORED = {"HUGEINT", "UHUGEINT", "BIGNUM", "BIT", "TIME WITH TIME ZONE"}
"""Types that travel as text between nodes and are what they were again there."""


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def as_row_value(name: str, type: str) -> str:
    """The SQL expression for a column of rows."""
    if _AS_THEY_ARE.match(type) or type in _FLOATS or _WIDE.match(type):
        return quoted(name)
    inner = f"to_json({quoted(name)})" if _NESTED.match(type) else quoted(name)
    return f"CAST({inner} AS VARCHAR)"


def reader(type: str) -> Callable[[Any], Any] | None:
    """What makes a value of a message from one that came for `as_row_value`; None if nothing is to be done."""
    if _AS_THEY_ARE.match(type):
        return None
    if type in _FLOATS:
        return _float
    if _WIDE.match(type):
        return _wide
    return _nested if _NESTED.match(type) else None


def in_parquet(name: str, type: str, *, for_peer: bool) -> str:
    """The SQL expression for a column of a Parquet file, which has no integers of 128 bits (DuckDB would write floats)
    and no zone of a time of day. A peer gets their text, see `RESTORED`; people get decimals.
    """
    column = quoted(name)
    if _NOT_IN_PARQUET.match(type) and (for_peer or not _HUGE.match(type)):
        return f"CAST({column} AS VARCHAR) AS {column}"
    if _HUGE.search(type):
        return f"CAST({column} AS {_HUGE.sub('DECIMAL(38,0)', type)}) AS {column}"
    if type == '"NULL"':
        return f"CAST({column} AS INTEGER) AS {column}"
    return column


def _float(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _wide(value: Any) -> int | float | str | None:
    """A number where one holds it exactly."""
    if value is None:
        return None
    number = Decimal(value)
    if number == number.to_integral_value():
        return _integer(str(int(number)))
    return float(number) if Decimal(repr(float(number))) == number else str(number)


def _integer(text: str) -> int | str:
    number = int(text) if len(text) <= 20 else None
    return number if number is not None and -(2**63) <= number < 2**64 else text


def _nested(value: str | None) -> Any:
    if value is None:
        return None
    try:
        return json.loads(value, parse_constant=str, parse_int=_integer, parse_float=_finite)
    except (ValueError, RecursionError):
        return value


def _finite(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text
