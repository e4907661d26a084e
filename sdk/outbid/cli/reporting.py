"""`outbid report`: what people, capabilities, nodes and models used in a month."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any, get_args

import click

from outbid import history
from outbid.cli import output
from outbid.cli.running import JSON, STATE, run
from outbid.cli.sql import as_csv_text, missing
from outbid.mesh import Mesh
from outbid_contracts.errors import InvalidRequest
from outbid_contracts.history import By, Report, ReportRequest, ReportRow, month_ms

_NUMBERS = (">jobs", ">failed", ">hours", ">kWh", ">dollars")


@click.command()
@click.option("--month", metavar="YYYY-MM", help="Which month, in local time; default: this one.")
@click.option(
    "--by", multiple=True, type=click.Choice(get_args(By)), help="What to sum up by (repeatable); default: person."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@STATE
@JSON
def report(month: str | None, by: Sequence[By], as_csv: bool, state: str | None, as_json: bool) -> None:
    """What was used in a month, on all nodes: jobs, hours, energy, money, units of work.

    \b
    outbid report
    outbid report --month 2026-10 --by node
    outbid report --by person --by capability --csv

    A person is whoever's credentials asked for the work: their name where one of the nodes gave them out (`outbid
    creds`), "on NODE" for who works at a node itself, else the first characters of the public key.
    """
    if as_csv and as_json:
        raise click.UsageError("--csv and --json do not go together")
    from_ms, to_ms = _month(month)
    asked = ReportRequest(from_ms=from_ms, to_ms=to_ms, by=history.grouped(tuple(dict.fromkeys(by)) or ("person",)))
    run(state, lambda mesh: _report(mesh, asked, as_json=as_json, as_csv=as_csv))


def _month(text: str | None) -> tuple[int, int]:
    """In this machine's zone, which need not be that of the node. Raises click.BadParameter."""
    try:
        return month_ms(text or f"{datetime.datetime.now():%Y-%m}")
    except InvalidRequest as error:
        raise click.BadParameter(error.message, param_hint="--month") from error


async def _report(mesh: Mesh, asked: ReportRequest, *, as_json: bool, as_csv: bool) -> None:
    found = await history.report(mesh, asked)
    if as_json:
        output.say(found)
        return
    if as_csv:
        _csv(found)
    else:
        _table(found)
    missing(found.silent)


def _table(found: Report) -> None:
    begin, end = (datetime.datetime.fromtimestamp(ms / 1000) for ms in (found.from_ms, found.to_ms - 1))
    heading = f"{begin:%Y-%m-%d} to {end:%Y-%m-%d}"
    if not found.rows:
        output.show(f"{heading}: nothing ran")
        return
    rows = output.table(*found.by, *_NUMBERS, "units")
    for row in found.rows:
        rows.add_row(*map(output.plain, (*row.key, *_numbers(row))))
    if len(found.rows) > 1:
        rows.add_section()
        rows.add_row("all", *[""] * (len(found.by) - 1), *map(output.plain, _numbers(found.total)), style="bold")
    output.show(f"[dim]{heading}[/dim]", rows)


def _numbers(row: ReportRow) -> tuple[str, ...]:
    units = ", ".join(f"{amount:,.6g} {unit}" for unit, amount in row.units.items())
    return (
        f"{row.jobs:,}",
        f"{row.failed:,}",
        *map(_short, (row.hours, row.energy_kwh, row.cost_usd)),
        units,
    )


def _short(number: float) -> str:
    """
    >>> _short(1234.5), _short(0.5), _short(0.00012345), _short(0)
    ('1,234.50', '0.50', '0.00012', '0')
    """
    if abs(number) >= 0.1:
        return f"{number:,.2f}"
    return f"{number:.6f}"[:7] if abs(number) >= 1e-5 else "0"


def _csv(found: Report) -> None:
    units = sorted(found.total.units)
    names = [
        *found.by,
        *(f"{word}_id" for word in found.by),
        "jobs",
        "failed",
        "hours",
        "energy_kwh",
        "cost_usd",
        *units,
    ]
    rows: list[Sequence[Any]] = [
        [
            *(*row.key, *row.ids, row.jobs, row.failed, row.hours, row.energy_kwh, row.cost_usd),
            *(row.units.get(unit, 0) for unit in units),
        ]
        for row in found.rows
    ]
    as_csv_text(names, rows)
