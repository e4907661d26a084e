"""Old rows of two tables become fewer: samples means of ten minutes, the sums of usage one row for each hour.

One day at a time, each in one transaction with a note of how far it has come, so that nothing is rolled up twice. The
means lie in the same table; `span_s` says how long each row stands for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import msgspec

from outbid_node.history.frames import Settings
from outbid_node.history.retention import AGAIN_S, DAY_MS, EVERY_S, FIRST_S
from outbid_node.history.rows import Row, Samples, Usage
from outbid_node.history.schema import as_json, columns, insertion
from outbid_node.history.writer import Task

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SPAN_MS = 600_000

USAGE_DAYS = 1.0
"""The sums of an hour may still grow for a while."""

Fewer = Callable[[Sequence[Any]], Sequence[Row]]


class RollUp:
    """Rows of `kind` that are older than `days` are replaced, day by day, by what `fewer` makes of them."""

    def __init__(self, kind: type[Row], column: str, days: float, fewer: Fewer) -> None:
        self._kind, self._table, self._column = kind, str(kind.__struct_config__.tag), column
        self._days, self._fewer = days, fewer
        self.task = Task(self.step, EVERY_S, FIRST_S)

    def step(self, connection: DuckDBPyConnection) -> float | None:
        from_ms = self._rolled_until(connection)
        if from_ms is None or from_ms + DAY_MS > time.time_ns() // 1_000_000 - self._days * DAY_MS:
            return None
        self._roll_up(connection, from_ms, from_ms + DAY_MS)
        return AGAIN_S

    def _rolled_until(self, connection: DuckDBPyConnection) -> int | None:
        """Everything before is done; the beginning of the first day that has rows, if there are any."""
        known = connection.execute(
            "SELECT max(until_ms) FROM _rolled_up WHERE table_name = ?", [self._table]
        ).fetchone()
        done_ms = known[0] if known and known[0] is not None else 0
        where = f"WHERE {self._column} >= ?"
        first = connection.execute(f"SELECT min({self._column}) FROM {self._table} {where}", [done_ms]).fetchone()
        if first is None or first[0] is None:
            return None
        return max(done_ms, int(first[0]) // DAY_MS * DAY_MS)

    def _roll_up(self, connection: DuckDBPyConnection, from_ms: int, until_ms: int) -> None:
        where, day = f"WHERE {self._column} >= ? AND {self._column} < ?", [from_ms, until_ms]
        wanted = tuple(columns(self._kind))
        names = ", ".join(wanted)
        connection.begin()
        try:
            found = connection.execute(f"SELECT {names} FROM {self._table} {where} ORDER BY {self._column}", day)
            rows = [self._kind(**dict(zip(wanted, row, strict=True))) for row in found.fetchall()]
            connection.execute(f"DELETE FROM {self._table} {where}", day)
            connection.execute(insertion(self._table), [as_json(self._fewer(rows))[0]])
            connection.execute("DELETE FROM _rolled_up WHERE table_name = ?", [self._table])
            connection.execute("INSERT INTO _rolled_up VALUES (?, ?)", [self._table, until_ms])
            connection.commit()
        except BaseException:
            with contextlib.suppress(Exception):
                connection.rollback()
            raise


def roll_ups(settings: Settings) -> list[RollUp]:
    return [
        RollUp(Samples, "at_ms", settings.keep_samples_days, means),
        RollUp(Usage, "hour_ms", USAGE_DAYS, sums),
    ]


def means(samples: Sequence[Samples]) -> list[Samples]:
    """Of every ten minutes one, in the order of time."""
    from outbid_node.history.samples import mean  # and with it what only a daemon needs; hardly a process lives so long

    return [mean(list(group)) for _, group in groupby(samples, key=lambda sample: sample.at_ms // SPAN_MS)]


def sums(rows: Sequence[Usage]) -> list[Usage]:
    """One for each hour and kind of use."""
    found: dict[tuple[object, ...], Usage] = {}
    for row in rows:
        key = (row.hour_ms, row.submitter, row.owner, row.capability, row.model)
        found[key] = _added(found[key], row) if key in found else row
    return list(found.values())


def _added(one: Usage, other: Usage) -> Usage:
    units = {unit: one.units.get(unit, 0.0) + other.units.get(unit, 0.0) for unit in one.units | other.units}
    return msgspec.structs.replace(
        one,
        jobs=one.jobs + other.jobs,
        failed=one.failed + other.failed,
        seconds=one.seconds + other.seconds,
        energy_j=one.energy_j + other.energy_j,
        cost_usd=one.cost_usd + other.cost_usd,
        units=units,
    )
