"""`outbid why`: one job from its bids to its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import msgspec

from outbid.cli import policies, sheets
from outbid.cli.job_listing import moment, names_of
from outbid.cli.output import plain, say, show, table
from outbid.cli.sheets import dollars, joules, seconds, times_as
from outbid_contracts.messages import AttemptRecord, BidSheet, Considered, JobRecord
from outbid_contracts.policy import weights_of
from outbid_contracts.requests import NodeView

if TYPE_CHECKING:
    from rich.table import Table

WAITED_S = 0.05
"""Shorter waits are not worth a word."""

_HOW = {
    "standing": "awarded from standing offers: the job is too short to ask for bids",
    "only": "only one node could do it",
}


def why(record: JobRecord, views: Sequence[NodeView], *, verbose: bool, as_json: bool) -> None:
    if as_json:
        say(facts(record))
        return
    show(*told(record, names_of(views, [record]), verbose=verbose))


def told(record: JobRecord, names: sheets.Names, *, verbose: bool) -> Iterator[Any]:
    """What rich prints, strings with its markup among it; `names` of nodes by id."""
    ordinals = {attempt.attempt: n for n, attempt in enumerate(record.attempts, 1)}
    yield from _heading(record)
    began_ms = max(record.created_ms, record.not_before_ms)
    for sheet, attempts in rounds(record):
        if sheet is not None:
            yield ""
            yield from _auction(sheet, record, names, waited_s(sheet, began_ms))
        for attempt in attempts:
            yield from _attempt(attempt, ordinals[attempt.attempt], sheet, names, verbose=verbose)
            began_ms = attempt.ended_ms or began_ms
    yield from _end(record)


def _heading(record: JobRecord) -> Iterator[str]:
    what = "  ".join(filter(None, (record.capability, record.model, record.state)))
    yield f"job [bold]{plain(record.id)}[/bold]  {plain(what)}"
    yield plain("  ".join(policies.told(record.policy)))
    if record.durable:
        terms = [f"durable, priority {record.priority or 'normal'}"]
        terms += [f"not before {moment(record.not_before_ms)}"] if record.not_before_ms else []
        terms += [f"after {', '.join(record.after)}"] if record.after else []
        yield plain("  ".join(terms))
    if record.state == "waiting" and record.reason:
        yield f"[yellow]waits: {plain(record.reason)}[/yellow]"


def _end(record: JobRecord) -> Iterator[str]:
    if record.ended_ms is not None:
        whole_s = (record.ended_ms - record.created_ms) / 1000
        yield ""
        yield f"[dim]{record.state} {moment(record.ended_ms)}, {seconds(whole_s)} after it was accepted[/dim]"
    if record.error:
        yield f"[red]{plain(record.error.message)}[/red]"


# -- auctions --------------------------------------------------------------------------------------------------------


def rounds(record: JobRecord) -> Iterator[tuple[BidSheet | None, Sequence[AttemptRecord]]]:
    """Each auction with the attempts that it led to: numbers make leaps where an award was refused, or an owner started
    again.
    """
    numbers = [sheet.attempt for sheet in record.sheets]
    early = [attempt for attempt in record.attempts if not numbers or attempt.attempt < numbers[0]]
    if early:
        yield None, early
    for sheet, after in zip_longest(record.sheets, numbers[1:]):
        yield sheet, [a for a in record.attempts if sheet.attempt <= a.attempt and (after is None or a.attempt < after)]


def waited_s(sheet: BidSheet, began_ms: int) -> float:
    """What the owner says, else what lies between its beginning (or the end of the attempt before) and the auction."""
    return sheet.waited_s or max(0.0, (sheet.opened_ms - began_ms) / 1000)


def asked(sheet: BidSheet) -> str:
    """Whom the call for proposals went to."""
    return _HOW.get(sheet.how, "1 node was asked" if sheet.asked == 1 else f"{sheet.asked} nodes were asked")


def _auction(sheet: BidSheet, record: JobRecord, names: sheets.Names, waited: float) -> Iterator[Any]:
    if waited >= WAITED_S:
        what = f": {sheet.waited_for}" if sheet.waited_for else ""
        yield f"[yellow]waited {seconds(waited)}{plain(what)}[/yellow]"
    yield f"{asked(sheet)}, decided in {sheet.took_ms:.1f} ms"
    if sheet.bids:
        yield ""
        yield sheets.numbers(sheet)
        yield ""
        yield f"[dim]{sheets.rates(record.policy)}[/dim]"
    if sheet.bids or sheet.declines:
        yield sheets.reasons(sheet, record.policy, names)
    if sheet.why:
        yield f"[bold]{plain(sheet.why)}[/bold]"


# -- attempts --------------------------------------------------------------------------------------------------------


def _attempt(
    attempt: AttemptRecord, ordinal: int, sheet: BidSheet | None, names: sheets.Names, *, verbose: bool
) -> Iterator[Any]:
    yield ""
    yield _headline(attempt, ordinal, names, verbose=verbose)
    if verbose and attempt.traceback:
        from rich.text import Text

        yield Text(attempt.traceback.rstrip(), style="dim")
    bid = next((c for c in sheet.bids if c.bid.node == attempt.node), None) if sheet else None
    if attempt.error is None:
        yield _balance(attempt, bid)


def _headline(attempt: AttemptRecord, ordinal: int, names: sheets.Names, *, verbose: bool) -> str:
    begun = f" from step {attempt.step}" if attempt.step else ""
    where = f"attempt {ordinal} on {plain(names.get(attempt.node, attempt.node))}{begun}"
    took = seconds((attempt.ended_ms - attempt.started_ms) / 1000) if attempt.ended_ms is not None else ""
    if attempt.error is None:
        return f"{where}: {f'ended after {took}' if took else 'under way'}"
    hint = " [dim](--verbose shows its traceback)[/dim]" if attempt.traceback and not verbose else ""
    error = f"{attempt.error.code}: {attempt.error.message}"
    return f"[yellow]{where} failed{f' after {took}' if took else ''}: {plain(error)}[/yellow]{hint}"


def _balance(attempt: AttemptRecord, considered: Considered | None) -> Table:
    """What was promised against what it took."""
    bid = considered.bid if considered else None
    finish_s = attempt.promised_s if attempt.promised_s is not None else bid.finish_s if bid else None
    p90_s = attempt.promised_p90_s if attempt.promised_p90_s is not None else bid.finish_p90_s if bid else None
    rows = table("", ">promised", ">took", "difference")
    late = p90_s is not None and attempt.took_s is not None and attempt.took_s > p90_s
    told = _apart(attempt.took_s, finish_s, "longer", "shorter") + (", beyond its p90" if late else "")
    rows.add_row("time", seconds(finish_s), seconds(attempt.took_s), told, style="yellow" if late else "")
    rows.add_row("p90", seconds(p90_s), "", "")
    energy_j, cost_usd = (bid.energy_j, bid.cost_usd) if bid else (None, None)
    rows.add_row("energy", joules(energy_j), joules(attempt.energy_j), _apart(attempt.energy_j, energy_j))
    rows.add_row("cost", dollars(cost_usd), dollars(attempt.cost_usd), _apart(attempt.cost_usd, cost_usd))
    return rows


def _apart(value: float | None, other: float | None, more: str = "more", less: str = "less") -> str:
    return times_as(value, other, more=more, less=less) if value is not None and other is not None else ""


# -- for programs ----------------------------------------------------------------------------------------------------


def facts(record: JobRecord) -> dict[str, Any]:
    """The record; the last auction's bids, declines and winner on top; the rates and arithmetic of each sheet."""
    last = record.sheets[-1] if record.sheets else None
    found: dict[str, Any] = msgspec.to_builtins(record)
    for shown, sheet in zip(found.get("sheets", ()), record.sheets, strict=True):
        shown["arithmetic"] = [_told(considered, record) for considered in sheet.bids]
    return found | {
        "weights": msgspec.to_builtins(weights_of(record.policy)),
        "bids": msgspec.to_builtins(last.bids) if last else [],
        "declines": msgspec.to_builtins(last.declines) if last else [],
        "winner": last.winner if last else None,
        "why": last.why if last else "",
    }


def _told(considered: Considered, record: JobRecord) -> dict[str, Any]:
    return {"node": considered.bid.node, "told": sheets.arithmetic(considered, record.policy)}
