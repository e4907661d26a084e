"""A job as a row of the list. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence

from outbid.cli.sheets import joules, seconds, times_as
from outbid_contracts.messages import AttemptRecord, JobRecord
from outbid_tui.looks import JOB_MARKS, Cell, Look, duration
from outbid_tui.state import JobView, MeshState
from outbid_tui.widgets.gauge import gauge
from outbid_tui.widgets.table import Column

COLUMNS = (
    Column("state", 11, keep=9),
    Column("job", 20, keep=9),
    Column("capability", 14, keep=8),
    Column("model", 16, keep=2),
    Column("node", 11, keep=7),
    Column("owner", 11, keep=2),
    Column("policy", 8, keep=2),
    Column("priority", 11, keep=1),
    Column("age", 5, keep=5, right=True),
    Column("took", 8, keep=5, right=True),
    Column("promised", 8, keep=4, right=True),
    Column("energy", 8, keep=3, right=True),
    Column("by", 7, keep=1),
    Column("progress", 14, grow=1, keep=9),
)

GAUGE = 24
"""Characters of a progress bar, at most."""

USER = 7
"""Characters of a submitter's key that tell people apart."""


def cells(view: JobView, state: MeshState, width: int, now_s: float | None = None) -> Sequence[Cell]:
    """One for each of COLUMNS. `width` is that of the last, `now_s` Unix time."""
    record, now_s = view.record, time.time() if now_s is None else now_s
    late = is_late(record, now_s)
    return (
        (JOB_MARKS[record.state],),
        record.id,
        record.capability,
        record.model or "",
        state.name_of(record.node),
        state.name_of(record.owner),
        record.policy.goal or "balanced",
        record.priority or ("normal" if record.durable else "–"),
        duration(max(0.0, now_s - record.created_ms / 1000)),
        ((_took(record, now_s), "warn" if late else ""),),
        seconds(promised_s(record)) if record.attempts else "",
        joules(energy) if (energy := energy_j(record)) is not None else "",
        record.submitter[:USER],
        progress(view, width, now_s),
    )


def _took(record: JobRecord, now_s: float) -> str:
    """What it took is a measurement; what it has taken so far need not be exact."""
    if not record.attempts:
        return ""
    took = took_s(record, now_s)
    return duration(took) if record.state == "running" else seconds(took)


def progress(view: JobView, width: int, now_s: float) -> Cell:
    """How far it is, why it waits, how it went."""
    record = view.record
    match record.state:
        case "running":
            return _running(view, width, now_s)
        case "waiting":
            return ((waits_for(view, now_s), "warn"),)
        case "done":
            return _against_promise(record)
        case _:
            return ((record.error.message if record.error else "", "bad" if record.state == "failed" else "dim"),)


def waits_for(view: JobView, now_s: float) -> str:
    record = view.record
    if record.reason:
        return record.reason
    if record.not_before_ms / 1000 > now_s:
        return f"not before {time.strftime('%a %H:%M:%S', time.localtime(record.not_before_ms / 1000))}"
    return f"after {', '.join(record.after)}" if record.after else view.note


def _running(view: JobView, width: int, now_s: float) -> Cell:
    """By steps where it tells them, else by the time that was promised."""
    record = view.record
    elapsed_s, whole_s = took_s(record, now_s), promised_s(record)
    if view.steps:
        fraction, told = view.step / view.steps, f" {view.step}/{view.steps}"
        told += f" {duration(view.eta_s)} left" if view.eta_s and width >= len(told) + 20 else ""
    elif whole_s and elapsed_s is not None:
        fraction, told = elapsed_s / whole_s, f" {duration(elapsed_s)} of {duration(whole_s)}"
    else:
        return ((view.note or "runs", "accent"),)
    note = f"  {view.note}" if view.note and width >= GAUGE + len(told) + 2 + len(view.note) else ""
    look: Look = "warn" if is_late(record, now_s) else "accent"
    return (*gauge(fraction, max(4, min(GAUGE, width - len(told))), look), (told, ""), (note, "dim"))


def _against_promise(record: JobRecord) -> Cell:
    took, promised = took_s(record), promised_s(record)
    if took is None or not promised:
        return ""
    apart = times_as(took, promised, more="longer", less="shorter") or "as promised"
    return ((f"{apart}, beyond its p90", "warn"),) if is_late(record) else ((apart, "dim"),)


def attempt_of(record: JobRecord) -> AttemptRecord | None:
    return record.attempts[-1] if record.attempts else None


def took_s(record: JobRecord, now_s: float | None = None) -> float | None:
    """Of the newest attempt; so far, if it runs."""
    attempt = attempt_of(record)
    if record.state == "running" and attempt is not None and attempt.ended_ms is None and now_s is not None:
        return max(0.0, now_s - attempt.started_ms / 1000)
    return record.took_s if record.took_s is not None else attempt.took_s if attempt else None


def promised_s(record: JobRecord) -> float | None:
    attempt = attempt_of(record)
    return attempt.promised_s if attempt and attempt.promised_s is not None else record.promised_s


def is_late(record: JobRecord, now_s: float | None = None) -> bool:
    """Beyond the p90 that its node promised."""
    attempt, took = attempt_of(record), took_s(record, now_s)
    return bool(attempt and attempt.promised_p90_s and took is not None and took > attempt.promised_p90_s)


def energy_j(record: JobRecord) -> float | None:
    """Of all attempts, as far as it is known."""
    known = [attempt.energy_j for attempt in record.attempts if attempt.energy_j is not None]
    return sum(known) if known else None
