"""Questions about the history that each node keeps: one SELECT on one node or on all of them, and the report.

Values of an answer's rows: booleans, 64-bit integers, finite floats, text, lists, maps with text keys, None. Everything
else is text as DuckDB writes it (timestamps, dates, intervals, UUIDs, `\\xAB` for bytes), and so is a number that the
others cannot hold (`NaN`, `Infinity`, larger integers). Parquet holds everything exactly.
"""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from outbid_contracts.codec import Format, decode
from outbid_contracts.errors import ErrorBody, InvalidRequest
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Message

MAX_SQL = 65_536
"""Characters of one query."""

LIMIT = 1_000
MAX_LIMIT = 100_000
TIMEOUT_S = 10.0
MAX_TIMEOUT_S = 60.0

MAX_ANSWER_BYTES = 14 * 2**20
"""Of rows or Parquet in one answer, so that it fits a message of the bus with what is around them."""

By = Literal["person", "capability", "node", "model"]
BY: tuple[By, ...] = ("person", "capability", "node", "model")


class SqlRequest(Message, frozen=True, kw_only=True):
    """`mesh.history.query`; bare text is `sql`. One SELECT, on the node that answers or, with `mesh`, on each.

    `over` is a second SELECT, over the table `answers` that the joined answers make; its rows are then the answer.
    `limit` counts rows. `timeout_s` is for each SELECT.
    """

    sql: Annotated[str, Meta(max_length=MAX_SQL)]
    mesh: bool = False
    over: Annotated[str, Meta(max_length=MAX_SQL)] | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT)] = LIMIT
    timeout_s: Annotated[float, Meta(gt=0, le=MAX_TIMEOUT_S)] = TIMEOUT_S
    format: Literal["rows", "parquet"] = "rows"


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """`type` is DuckDB's name of it, e.g. `MAP(VARCHAR, DOUBLE)`."""

    name: str
    type: str


class Silent(msgspec.Struct, frozen=True, kw_only=True):
    """A node whose part is missing in an answer, and why, in a sentence."""

    node: NodeId
    name: str
    why: str


class SqlAnswer(Message, frozen=True, kw_only=True):
    """`truncated`: there was more than the limits let through, on the nodes named in `cut`."""

    columns: tuple[Column, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    parquet: bytes = b""
    truncated: bool = False
    cut: tuple[str, ...] = ()
    silent: tuple[Silent, ...] = ()
    took_s: float = 0.0


class TableView(msgspec.Struct, frozen=True, kw_only=True):
    """A table of the history; `columns` are (name, type, meaning)."""

    name: str
    meaning: str
    columns: tuple[tuple[str, str, str], ...]


class TableList(Message, frozen=True, kw_only=True):
    """Answer of `mesh.history.tables`."""

    tables: tuple[TableView, ...] = ()


# -- the report --------------------------------------------------------------------------------------------------------


class ReportRequest(Message, frozen=True, kw_only=True):
    """`mesh.history.report`: what was used from `from_ms` up to `to_ms`, or in `month` (YYYY-MM, in the local time of
    the node that answers; default: this month), summed up by `by`.
    """

    month: str | None = None
    from_ms: int | None = None
    to_ms: int | None = None
    by: tuple[By, ...] = ("person",)


class ReportRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one group used. `key` are the group's names for people, in the order of `by`; `ids` what they stand for: a
    public key, a node id, or the same name. `energy_kwh` and `cost_usd` are as the nodes measured or estimated them;
    `units` are of work, as done (tokens, pictures, seconds of audio).
    """

    key: tuple[str, ...]
    ids: tuple[str, ...]
    jobs: int
    failed: int
    hours: float
    energy_kwh: float
    cost_usd: float
    units: dict[str, float] = {}


class Report(Message, frozen=True, kw_only=True):
    """`total` has an empty key."""

    from_ms: int
    to_ms: int
    by: tuple[By, ...]
    rows: tuple[ReportRow, ...]
    total: ReportRow
    silent: tuple[Silent, ...] = ()


def month_ms(month: str) -> tuple[int, int]:
    """The beginning of a month and of the next one, in local time. Raises InvalidRequest."""
    found = re.fullmatch(r"(\d{4})-(\d{2})", month)
    if found is None or not (1 <= int(found[2]) <= 12 and 1970 <= int(found[1]) < 9999):
        raise InvalidRequest(f"`month` must be YYYY-MM, not {month[:20]!r}")
    year, number = int(found[1]), int(found[2])
    after = (year + number // 12, number % 12 + 1)
    begin, end = (datetime.datetime(y, m, 1).timestamp() for y, m in ((year, number), after))
    return int(begin * 1000), int(end * 1000)


# -- between nodes -----------------------------------------------------------------------------------------------------


class PeerQuery(Message, frozen=True, kw_only=True):
    """`mesh.node.<id>.query`: the SELECT that each node runs for one that was asked for all. Parquet comes back."""

    sql: str
    limit: int
    timeout_s: float


class PeerAnswer(Message, frozen=True, kw_only=True):
    """`columns` have the types that the values had there: Parquet has none for some of them and holds their text."""

    columns: tuple[Column, ...]
    parquet: bytes
    truncated: bool = False


class UsageQuery(Message, frozen=True, kw_only=True):
    """`mesh.node.<id>.usage`."""

    from_ms: int
    to_ms: int


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """What one user had done on one node by one capability and model."""

    submitter: str
    capability: str
    model: str | None
    jobs: int
    failed: int
    seconds: float
    energy_j: float
    cost_usd: float
    units: dict[str, float] = {}


class UsageReply(Message, frozen=True, kw_only=True):
    """`names`: users by public key, as far as that node knows them."""

    used: tuple[Used, ...] = ()
    names: dict[str, str]


class Told(Message, frozen=True, kw_only=True):
    """How a SELECT ended in the process that ran it."""

    columns: tuple[Column, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    parquet: bytes = b""
    truncated: bool = False
    error: ErrorBody | None = None


def parse_sql(data: bytes, format: Format) -> SqlRequest:
    """Raises InvalidRequest naming the field."""
    if format is Format.TEXT:
        try:
            return msgspec.convert({"sql": data.decode()}, SqlRequest)
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"the text is not UTF-8: {error}") from error
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"query: {error}") from error
    asked: SqlRequest = decode(data, SqlRequest, format)
    return asked
