"""How jobs look: the list, one job's bid sheets and attempts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from outbid.cli.output import plain, say, show, table
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import AttemptRecord, BidSheet, Considered, JobRecord
from outbid_contracts.requests import JobsReply, NodeView

if TYPE_CHECKING:
    from rich.table import Table

Names = dict[str, str]
"""Of nodes, by id."""


def jobs(reply: JobsReply, views: Sequence[NodeView], *, as_json: bool) -> None:
    if as_json:
        say(reply.jobs)
        return
    names = _names(views, reply.jobs)
    columns = ("job", "state", "durable", "capability", "node", "owner", ">age", ">took", ">promised", ">attempts")
    rows = table(*columns, "note")
    rows.columns[-1].no_wrap = True
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


# -- one job -----------------------------------------------------------------------------------------------------------


def why(record: JobRecord, views: Sequence[NodeView], *, verbose: bool, as_json: bool) -> None:
    if as_json:
        say(_why_json(record))
        return
    names = _names(views, [record])
    ordinals = _ordinals(record)
    show(*_heading(record))
    for sheet in record.sheets:
        show("", *_sheet(sheet, names, ordinals))
    if record.attempts:
        show("")
    for attempt in record.attempts:
        show(*_attempt(attempt, ordinals[attempt.attempt], names, verbose=verbose))
    if record.took_s is not None:
        show("", f"took {seconds(record.took_s)}, promised {seconds(record.promised_s)}")
    if record.error:
        show("", f"[red]{plain(record.error.message)}[/red]")


def _heading(record: JobRecord) -> Iterable[str]:
    policy = record.policy
    extra = [f"{key} {value}" for key, value in msgspec.to_builtins(policy).items() if value and key != "goal"]
    facts = [record.capability, f"goal {policy.goal}", *extra, record.state]
    yield f"job [bold]{record.id}[/bold]  {plain('  '.join(facts))}"
    if record.durable:
        terms = [f"durable, priority {record.priority or 'normal'}"]
        terms += [f"not before {moment(record.not_before_ms)}"] if record.not_before_ms else []
        terms += [f"after {', '.join(record.after)}"] if record.after else []
        yield plain("  ".join(terms))
    if record.state == "waiting" and record.reason:
        yield f"[yellow]waits: {plain(record.reason)}[/yellow]"


def _ordinals(record: JobRecord) -> dict[int, int]:
    """Attempts by number from 1 on: their own numbers make leaps where an owner started again."""
    numbers = {sheet.attempt for sheet in record.sheets} | {attempt.attempt for attempt in record.attempts}
    return {number: n for n, number in enumerate(sorted(numbers), 1)}


def _attempt(attempt: AttemptRecord, ordinal: int, names: Names, *, verbose: bool) -> Iterable[Any]:
    from rich.text import Text

    begun = f" from step {attempt.step}" if attempt.step else ""
    where = f"attempt {ordinal} on {plain(names.get(attempt.node, attempt.node))}{begun}"
    took = seconds((attempt.ended_ms - attempt.started_ms) / 1000) if attempt.ended_ms is not None else ""
    if attempt.error is None:
        yield f"{where}: {f'ended after {took}' if took else 'under way'}"
        return
    hint = " [dim](--verbose shows its traceback)[/dim]" if attempt.traceback and not verbose else ""
    error = f"{attempt.error.code}: {attempt.error.message}"
    yield f"[yellow]{where} failed{f' after {took}' if took else ''}: {plain(error)}[/yellow]{hint}"
    if verbose and attempt.traceback:
        yield Text(attempt.traceback.rstrip(), style="dim")


def _sheet(sheet: BidSheet, names: Names, ordinals: dict[int, int]) -> Iterable[Any]:
    how = {
        "asked": f"{sheet.asked} nodes were asked",
        "standing": "awarded from standing offers: the job is too short to ask for bids",
        "only": "only one node could do it",
    }[sheet.how]
    yield f"attempt {ordinals[sheet.attempt]}: {how}, decided in {sheet.took_ms:.1f} ms"
    if sheet.bids:
        yield _bids(sheet)
    for decline in sheet.declines:
        who = names.get(decline.node, decline.node)
        yield f"[dim]{plain(f'{who} declined ({decline.code}): {decline.reason}')}[/dim]"
    if sheet.why:
        yield f"[bold]{plain(sheet.why)}[/bold]"


def _bids(sheet: BidSheet) -> Table:
    columns = (">score", ">start", ">finish", ">p90", ">energy", ">cost", "model", "rests on")
    rows = table("", "node", *columns)
    for considered in sheet.bids:
        bid = considered.bid
        rows.add_row(
            "→" if bid.node == sheet.winner else "",
            plain(considered.name),
            _score(considered),
            seconds(bid.start_s),
            seconds(bid.finish_s),
            seconds(bid.finish_p90_s),
            f"{bid.energy_j:.3g} J",
            f"${bid.cost_usd:.2g}",
            plain(("warm" if bid.warm else "cold") + (f" {bid.model}" if bid.model else "")),
            plain(considered.excluded or bid.why),
        )
    return rows


def _score(considered: Considered) -> str:
    return "excluded" if considered.excluded else f"{considered.score:.3g}"


def _why_json(record: JobRecord) -> dict[str, Any]:
    """The record, with the last auction's bids, declines and winner on top."""
    last = record.sheets[-1] if record.sheets else None
    return msgspec.to_builtins(record) | {  # type: ignore[no-any-return]
        "bids": msgspec.to_builtins(last.bids) if last else [],
        "declines": msgspec.to_builtins(last.declines) if last else [],
        "winner": last.winner if last else None,
        "why": last.why if last else "",
    }


def _names(views: Sequence[NodeView], records: Sequence[JobRecord]) -> Names:
    """Of nodes that are gone, as they were called when they made their bids."""
    bidders = (c for record in records for sheet in record.sheets for c in sheet.bids)
    names: Names = {c.bid.node: c.name for c in bidders}
    return names | {view.presence.node: view.presence.name for view in views}


def name_of(views: Sequence[NodeView], node: NodeId) -> str:
    return next((view.presence.name for view in views if view.presence.node == node), node)


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value:.2f} s"


def _ago(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"
