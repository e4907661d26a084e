"""Questions about what the nodes did: `Mesh.sql` and `Mesh.report`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from outbid_contracts import subjects
from outbid_contracts.errors import InvalidRequest
from outbid_contracts.history import BY, By, Column, Report, ReportRequest, Silent, SqlAnswer, SqlRequest, TableList

if TYPE_CHECKING:
    from outbid.mesh import Mesh

WAY_S = 10.0
"""Beyond the time of the query itself: the way there and back, and the end of what cannot be interrupted."""

JOIN_S = 15.0
REPORT_S = 20.0


@dataclass(frozen=True)
class Table:
    """The answer to a query. Values are those of JSON: see `outbid_contracts.history` for which types come as text.

    `truncated`: there was more than the limit let through, on the nodes in `cut`. `silent`: nodes whose rows are
    missing, and why.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    truncated: bool = False
    cut: tuple[str, ...] = ()
    silent: tuple[Silent, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def dicts(self) -> list[dict[str, Any]]:
        """Each row as a map from column to value."""
        return [dict(zip(self.names, row, strict=True)) for row in self.rows]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Parquet:
    """The answer to a query as the content of a Parquet file; the rest is as in `Table`."""

    data: bytes
    columns: tuple[Column, ...]
    truncated: bool = False
    cut: tuple[str, ...] = ()
    silent: tuple[Silent, ...] = ()


async def table(mesh: Mesh, asked: SqlRequest) -> Table:
    found = await _answer(mesh, asked, "rows")
    return Table(found.columns, found.rows, found.truncated, found.cut, found.silent)


async def parquet(mesh: Mesh, asked: SqlRequest) -> Parquet:
    found = await _answer(mesh, asked, "parquet")
    return Parquet(found.parquet, found.columns, found.truncated, found.cut, found.silent)


async def tables(mesh: Mesh) -> TableList:
    found: TableList = await mesh.request(subjects.history("tables"), {}, TableList, timeout_s=WAY_S)
    return found


async def report(mesh: Mesh, asked: ReportRequest) -> Report:
    found: Report = await mesh.request(subjects.history("report"), asked, Report, timeout_s=REPORT_S)
    return found


def grouped(by: By | Sequence[By]) -> tuple[By, ...]:
    """Raises InvalidRequest."""
    words = (by,) if isinstance(by, str) else tuple(by)
    if not words or not set(words) <= set(BY):
        raise InvalidRequest(f"`by` must be of {', '.join(BY)}")
    return words


async def _answer(mesh: Mesh, asked: SqlRequest, format: Literal["rows", "parquet"]) -> SqlAnswer:
    asked = msgspec.structs.replace(asked, format=format)
    timeout_s = asked.timeout_s + WAY_S + (asked.timeout_s + JOIN_S if asked.mesh else 0)
    found: SqlAnswer = await mesh.request(subjects.history("query"), asked, SqlAnswer, timeout_s=timeout_s)
    return found
