"""What people, capabilities, nodes and models used in a month: the sums of all nodes' `usage`, grouped."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outbid_contracts.errors import InvalidRequest
from outbid_contracts.history import By, Report, ReportRequest, ReportRow, Silent, UsageReply, Used, month_ms
from outbid_contracts.ids import NodeId

SHOWN_KEY = 8
"""Characters of a public key that nobody has a name for."""

NOBODY = "unknown"
"""Who asked for work is not known where a request names no inbox of a user."""

J_PER_KWH = 3_600_000

USAGE = """
SELECT submitter, capability, model, sum(jobs), sum(failed), sum(seconds), sum(energy_j), sum(cost_usd)
FROM usage WHERE hour_ms >= {from_ms} AND hour_ms < {to_ms} GROUP BY ALL
"""

UNITS = """
SELECT submitter, capability, model, unit.key, sum(unit.value)
FROM (SELECT submitter, capability, model, unnest(map_entries(units)) AS unit
      FROM usage WHERE hour_ms >= {from_ms} AND hour_ms < {to_ms})
GROUP BY ALL
"""

WORKERS = """
SELECT node, max_by(name, ended_ms) FROM attempts
WHERE ended_ms >= {from_ms} AND ended_ms < {to_ms} GROUP BY node
"""


def period(asked: ReportRequest, now: datetime.datetime | None = None) -> tuple[int, int]:
    """From and to, in Unix milliseconds. Hours of `usage` begin with those of UTC: where a zone is off by half an hour,
    so is the report. Raises InvalidRequest.
    """
    if asked.from_ms is not None or asked.to_ms is not None:
        if asked.month is not None or asked.from_ms is None or asked.to_ms is None or asked.from_ms >= asked.to_ms:
            raise InvalidRequest("give `month`, or `from_ms` and a later `to_ms`")
        return asked.from_ms, asked.to_ms
    return month_ms(asked.month or f"{now or datetime.datetime.now():%Y-%m}")


def usage_of(rows: Iterable[Sequence[Any]], units: Iterable[Sequence[Any]]) -> list[Used]:
    """From the rows of USAGE and of UNITS."""
    amounts: dict[tuple[Any, ...], dict[str, float]] = defaultdict(dict)
    for *key, unit, amount in units:
        amounts[tuple(key)][unit] = float(amount or 0)
    return [
        Used(
            submitter=row[0] or "",
            capability=row[1] or "",
            model=row[2],
            jobs=int(row[3] or 0),
            failed=int(row[4] or 0),
            seconds=float(row[5] or 0),
            energy_j=float(row[6] or 0),
            cost_usd=float(row[7] or 0),
            units=amounts.get(tuple(row[:3]), {}),
        )
        for row in rows
    ]


def report_of(
    replies: Sequence[tuple[NodeId, str, UsageReply]],
    by: tuple[By, ...],
    from_ms: int,
    to_ms: int,
    silent: Sequence[Silent] = (),
) -> Report:
    """`replies`: each node with its name and what it said. Of two names for one user the first counts."""
    names: dict[str, str] = {}
    for _, _, reply in reversed(replies):
        names |= reply.names
    groups: dict[tuple[str, ...], _Sum] = defaultdict(_Sum)
    keys: dict[tuple[str, ...], tuple[str, ...]] = {}
    total = _Sum()
    for node, name, reply in replies:
        for used in reply.used:
            facts = _facts(used, node, name, names)
            ids = tuple(facts[word][1] for word in by)
            keys[ids] = tuple(facts[word][0] for word in by)
            groups[ids].add(used)
            total.add(used)
    rows = [group.row(keys[ids], ids) for ids, group in groups.items()]
    rows.sort(key=lambda row: (-row.cost_usd, -row.energy_kwh, -row.hours, row.key))
    return Report(from_ms=from_ms, to_ms=to_ms, by=by, rows=tuple(rows), total=total.row((), ()), silent=tuple(silent))


def _facts(used: Used, node: NodeId, name: str, names: Mapping[str, str]) -> dict[By, tuple[str, str]]:
    """What can be grouped by: the name for people, and what it stands for."""
    person = names.get(used.submitter) or used.submitter[:SHOWN_KEY] or NOBODY
    model = used.model or "–"
    return {
        "person": (person, used.submitter),
        "capability": (used.capability, used.capability),
        "node": (name, node),
        "model": (model, model),
    }


@dataclass
class _Sum:
    jobs: int = 0
    failed: int = 0
    seconds: float = 0.0
    energy_j: float = 0.0
    cost_usd: float = 0.0
    units: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, used: Used) -> None:
        self.jobs += used.jobs
        self.failed += used.failed
        self.seconds += used.seconds
        self.energy_j += used.energy_j
        self.cost_usd += used.cost_usd
        for unit, amount in used.units.items():
            self.units[unit] += amount

    def row(self, key: tuple[str, ...], ids: tuple[str, ...]) -> ReportRow:
        return ReportRow(
            key=key,
            ids=ids,
            jobs=self.jobs,
            failed=self.failed,
            hours=round(self.seconds / 3600, 6),
            energy_kwh=round(self.energy_j / J_PER_KWH, 9),
            cost_usd=round(self.cost_usd, 9),
            units={unit: round(amount, 6) for unit, amount in sorted(self.units.items())},
        )
