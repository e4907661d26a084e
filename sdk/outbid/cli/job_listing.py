"""How jobs look in a list."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime

from outbid.cli.output import plain, say, show, table
from outbid.cli.sheets import seconds
from outbid_contracts.messages import JobRecord
from outbid_contracts.requests import JobsReply, NodeView


def jobs(reply: JobsReply, views: Sequence[NodeView], *, as_json: bool) -> None:
    if as_json:
        say(reply.jobs)
        return
    names = names_of(views, reply.jobs)
    columns = ("job", "state", "durable", "capability", "node", "owner", ">age", ">took", ">promised", ">attempts")
    rows = table(*columns, "note")
    for column in rows.columns[:-1]:  # where it is narrow the notes give way, not the ids
        column.no_wrap = True
    now_s = time.time()
    for record in reply.jobs:
        rows.add_row(
            record.id,
            record.state,
            record.priority or "normal" if record.durable else "–",
            record.capability,
            names.get(record.node or "", record.node or "–"),
            names.get(record.owner, record.owner),
            _ago(now_s - record.created_ms / 1000),
            seconds(record.took_s),
            seconds(record.promised_s),
            str(len(record.attempts)),
            plain(_note(record, now_s)),
        )
    silent = [f"[yellow]{plain(name)} did not answer; its jobs are not shown[/yellow]" for name in reply.silent]
    show(rows if reply.jobs else "no jobs yet", *silent)


def _note(record: JobRecord, now_s: float) -> str:
    """Why it failed, or why it waits, in 60 characters."""
    if record.error:
        return _clipped(record.error.message)
    if record.state != "waiting":
        return ""
    if record.reason:
        return _clipped(record.reason)
    if record.not_before_ms / 1000 > now_s:
        return f"not before {moment(record.not_before_ms)}"
    return _clipped(f"after {', '.join(record.after)}") if record.after else ""


def moment(ms: int) -> str:
    """Unix milliseconds in local time, without the date if it is today's."""
    then = datetime.fromtimestamp(ms / 1000)
    return then.strftime("%H:%M:%S" if then.date() == datetime.now().date() else "%Y-%m-%d %H:%M")


def _clipped(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


def cancelled(record: JobRecord, *, as_json: bool) -> None:
    if as_json:
        say(record)
    else:
        show(f"job {record.id} is {record.state}")


def names_of(views: Sequence[NodeView], records: Sequence[JobRecord]) -> dict[str, str]:
    """Of nodes that are gone, as they were called when they made their bids."""
    bidders = (c for record in records for sheet in record.sheets for c in sheet.bids)
    names: dict[str, str] = {c.bid.node: c.name for c in bidders}
    return names | {view.presence.node: view.presence.name for view in views}


def _ago(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"
