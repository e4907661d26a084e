"""`outbid sql`: one SELECT over what the nodes recorded."""

from __future__ import annotations

import asyncio
import csv
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from outbid import history
from outbid.cli import output, saving
from outbid.cli.running import JSON, STATE, duration, run
from outbid.history import Table
from outbid.mesh import Mesh
from outbid_contracts.errors import StorageFailed
from outbid_contracts.history import LIMIT, MAX_LIMIT, MAX_TIMEOUT_S, TIMEOUT_S, Silent, SqlRequest, TableList

_NUMBER = re.compile(r"(U?(TINY|SMALL|BIG|HUGE)INT|U?INTEGER|DOUBLE|FLOAT|DECIMAL\(\d+,\d+\))\Z")
WIDEST = 60
"""Characters of a cell in the table."""


@click.command()
@click.argument("query", required=False)
@click.option("--mesh", "everywhere", is_flag=True, help="Ask every node, and join the answers.")
@click.option("--over", metavar="QUERY", help="With --mesh: a SELECT over the joined answers, as table `answers`.")
@click.option("--limit", type=click.IntRange(1, MAX_LIMIT), default=LIMIT, show_default=True, help="Rows at most.")
@click.option(
    "--time", "timeout_s", type=duration, default=f"{TIMEOUT_S:g}s", show_default=True, help="For each SELECT."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--parquet", "parquet", metavar="FILE", help="Save as Parquet; - is standard output.")
@click.option("--tables", is_flag=True, help="List tables and columns with what they mean.")
@STATE
@JSON
def sql(query: str | None, state: str | None, as_json: bool, **options: Any) -> None:
    """Ask what this machine's node recorded: jobs, bids, runs, samples, usage. Read-only.

    \b
    outbid sql "SELECT state, count(*) FROM jobs GROUP BY ALL"
    outbid sql --mesh "SELECT * FROM loads" --over "SELECT node, avg(load_s) FROM answers GROUP BY ALL"
    outbid sql --tables

    The query comes from standard input if none is given, or -. More examples are in docs/history.md. With --json: one
    list of objects.
    """
    if options["tables"]:
        run(state, lambda mesh: _tables(mesh, as_json=as_json))
        return
    _check(options, as_json=as_json)
    asked = SqlRequest(
        sql=_query(query),
        mesh=options["everywhere"],
        over=options["over"],
        limit=options["limit"],
        timeout_s=options["timeout_s"],
    )
    if options["parquet"] is not None:
        run(state, lambda mesh: _save(mesh, asked, options["parquet"], as_json=as_json))
    else:
        run(state, lambda mesh: _show(mesh, asked, as_json=as_json, as_csv=options["as_csv"]))


def _check(options: dict[str, Any], *, as_json: bool) -> None:
    """Raises click.UsageError, click.BadParameter."""
    if options["over"] is not None and not options["everywhere"]:
        raise click.UsageError("--over is a SELECT over the answers of all nodes; add --mesh")
    if options["timeout_s"] > MAX_TIMEOUT_S:
        raise click.BadParameter(f"at most {MAX_TIMEOUT_S:g}s", param_hint="--time")
    if options["as_csv"] and (as_json or options["parquet"] is not None):
        raise click.UsageError("--csv, --json and --parquet do not go together")
    saving.check(options["parquet"])


def _query(query: str | None) -> str:
    if query not in (None, "-"):
        return str(query)
    if query is None and sys.stdin.isatty():
        raise click.UsageError('give a query: outbid sql "SELECT count(*) FROM jobs"; --tables shows what there is')
    return sys.stdin.read()


# -- answers -----------------------------------------------------------------------------------------------------------


async def _show(mesh: Mesh, asked: SqlRequest, *, as_json: bool, as_csv: bool) -> None:
    found = await history.table(mesh, asked)
    if as_json:
        output.say(found.dicts())
    elif as_csv:
        as_csv_text(found.names, found.rows)
    else:
        output.show(_rows(found))
    missing(found.silent)
    _remark(found.truncated, found.cut, asked.limit, len(found))


async def _save(mesh: Mesh, asked: SqlRequest, out: str, *, as_json: bool) -> None:
    found = await history.parquet(mesh, asked)
    if out == "-":
        await asyncio.to_thread(sys.stdout.buffer.write, found.data)
        sys.stdout.buffer.flush()
    else:
        path = await asyncio.to_thread(_write, out, found.data)
        output.say({"path": str(path)}) if as_json else output.line(str(path))
    missing(found.silent)
    _remark(found.truncated, found.cut, asked.limit)


def _write(out: str, data: bytes) -> Path:
    """`out` as `outbid image -o` takes it: a file, which is replaced, or a folder. Raises StorageFailed."""
    path = saving.reserve(Path(out), "answer.parquet") if Path(out).is_dir() else Path(out)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise StorageFailed(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def as_csv_text(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """To standard output, as RFC 4180 has it: nothing for NULL, JSON for lists and maps."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_csv_cell(value) for value in row] for row in rows)
    sys.stdout.flush()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return msgspec.json.encode(value).decode() if isinstance(value, list | dict | tuple) else value


def _rows(found: Table) -> Any:
    rows = output.table()
    for column in found.columns:
        number = _NUMBER.match(column.type) is not None
        rows.add_column(output.plain(column.name), justify="right" if number else "left", overflow="fold")
    for row in found.rows:
        rows.add_row(*("\n".join(map(output.plain, cell(value).split("\n"))) for value in row))
    return rows


def cell(value: Any) -> str:
    """A value of an answer, as people read it.

    >>> cell(None), cell(True), cell(1.23456789), cell({"a": 1.0})
    ('NULL', 'true', '1.23457', 'a=1')
    >>> cell([1, "x"]), cell(0.0001234567), cell(1234567.25)
    ('1, x', '0.000123457', '1234567.25')
    """
    match value:
        case None:
            return "NULL"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.6g}" if abs(value) < 1e5 else f"{value:.2f}".rstrip("0").rstrip(".")
        case dict():
            return _clipped(", ".join(f"{key}={cell(item)}" for key, item in value.items()))
        case list() | tuple():
            return _clipped(", ".join(map(cell, value)))
    return str(value)


def _clipped(text: str) -> str:
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"


def missing(silent: Sequence[Silent]) -> None:
    for node in silent:
        click.echo(f"without {_printable(node.name)}: {_printable(node.why)}", err=True)


def _remark(truncated: bool, cut: Sequence[str], limit: int, shown: int | None = None) -> None:
    if truncated:
        where = f" (on {', '.join(map(_printable, cut))})" if cut else ""
        rows = f"the first {shown} rows" if shown is not None else "the first rows"
        click.echo(f"{rows}; there are more{where}: --limit {limit} or their size ended it", err=True)


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else " " for sign in text)


# -- tables ------------------------------------------------------------------------------------------------------------


async def _tables(mesh: Mesh, *, as_json: bool) -> None:
    found = await history.tables(mesh)
    if as_json:
        output.say(found.tables)
        return
    output.show(*_described(found))


def _described(found: TableList) -> Iterator[Any]:
    for table in found.tables:
        yield f"[bold]{output.plain(table.name)}[/bold]  {output.plain(table.meaning)}"
        rows = output.table("", "", "")
        rows.show_header = False
        for name, type, meaning in table.columns:
            rows.add_row(f"  {output.plain(name)}", f"[dim]{output.plain(type)}[/dim]", output.plain(meaning))
        yield rows
        yield ""
