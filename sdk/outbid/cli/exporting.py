"""`outbid export`: the history of this machine's node as Parquet files."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from outbid.cli import output
from outbid.cli.running import JSON, STATE, run
from outbid.mesh import Mesh
from outbid_contracts import subjects
from outbid_contracts.admin import ExportReply, ExportRequest
from outbid_contracts.errors import OutbidError

EXPORT_TIMEOUT_S = 310.0


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--table", "tables", multiple=True, help="Only this table, e.g. jobs (several times for several).")
@STATE
@JSON
def export(folder: Path, tables: tuple[str, ...], state: str | None, as_json: bool) -> None:
    """Write this node's history to FOLDER: a Parquet file for each table, as of one moment. Files of the same names are
    replaced.
    """

    async def order(mesh: Mesh) -> None:
        assert mesh.local is not None
        asked, subject = ExportRequest(tables=tables), subjects.admin(mesh.local, "export")
        reply: ExportReply = await mesh.connection.request(subject, asked, ExportReply, timeout_s=EXPORT_TIMEOUT_S)
        _take(Path(reply.folder), folder)
        rows = {table: reply.rows[table] for table in sorted(reply.rows)}
        output.say({"folder": str(folder), "rows": rows}) if as_json else _tell(folder, rows)

    run(state, order)


def _take(from_folder: Path, folder: Path) -> None:
    """Both are on this machine, maybe on different disks. Raises OutbidError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(from_folder.iterdir()):
            shutil.move(file, folder / file.name)
        from_folder.rmdir()
    except OSError as error:
        raise OutbidError(f"{error.filename or folder}: {error.strerror or error}") from error


def _tell(folder: Path, rows: dict[str, int]) -> None:
    for table, count in rows.items():
        output.line(f"{folder / table}.parquet  {count} rows")
