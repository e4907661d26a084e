"""Which jobs are listed, and in which order. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

from outbid_contracts.messages import JobRecord, JobState
from outbid_tui.jobs import rows
from outbid_tui.state import JobView, MeshState

STATES: tuple[JobState, ...] = get_args(JobState)

_RANK: dict[str, int] = {"running": 0, "waiting": 1, "failed": 2, "done": 2, "cancelled": 2}

SORTS: Mapping[str, Callable[[JobRecord], Any]] = {
    "state": lambda record: (_RANK[record.state], -record.created_ms),
    "age": lambda record: -record.created_ms,
    "took": lambda record: -(rows.took_s(record) or 0.0),
    "promised": lambda record: -(rows.promised_s(record) or 0.0),
    "energy": lambda record: -(rows.energy_j(record) or 0.0),
    "node": lambda record: (record.node or "~", -record.created_ms),
    "owner": lambda record: (record.owner, -record.created_ms),
    "capability": lambda record: (record.capability, record.model or "", -record.created_ms),
    "by": lambda record: (record.submitter, -record.created_ms),
    "job": lambda record: record.id,
}
"""By the column's name. `state`: what runs, then what waits, then the rest with the newest first."""

KEYS: tuple[str, ...] = ("state", "age", "took", "energy", "node", "capability")
"""Those that one key goes through."""


def listed(
    views: Iterable[JobView], state: MeshState, *, words: str = "", only: JobState | None = None, sort: str = "state"
) -> list[JobView]:
    """Those that have each of the words somewhere in their row."""
    wanted = words.lower().split()
    found = [view for view in views if only in (None, view.record.state)]
    if wanted:
        found = [view for view in found if _has(_text(view, state), wanted)]
    key = SORTS[sort]
    return sorted(found, key=lambda view: key(view.record))


def counted(views: Iterable[JobView]) -> Counter[str]:
    return Counter(view.record.state for view in views)


def _has(text: str, words: Sequence[str]) -> bool:
    return all(word in text for word in words)


def _text(view: JobView, state: MeshState) -> str:
    record = view.record
    parts = (
        record.id,
        record.state,
        record.capability,
        record.model or "",
        state.name_of(record.node),
        state.name_of(record.owner),
        record.policy.goal or "balanced",
        record.priority,
        record.submitter,
        record.error.message if record.error else record.reason,
    )
    return " ".join(parts).lower()
