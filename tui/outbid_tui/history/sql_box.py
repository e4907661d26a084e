"""A query of one's own: editor, examples, the answer as a table."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Checkbox, DataTable, Select, Static
from textual.worker import Worker

from outbid import OutbidError, Table
from outbid_contracts.errors import StorageFailed
from outbid_tui.asking import Tick, chosen
from outbid_tui.history import answer
from outbid_tui.history.editor import SqlEditor
from outbid_tui.history.examples import EXAMPLES

if TYPE_CHECKING:
    from outbid_tui.app import Dashboard

LIMIT = 1_000
EXPORT_LIMIT = 100_000
FIRST = "SELECT capability, state, count(*) AS jobs\nFROM jobs\nGROUP BY ALL"


class SqlBox(Vertical):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+r,f9", "run", "Run", key_display="^r"),
        Binding("ctrl+s", "save", "Save"),
        Binding("escape", "stop", "Stop"),
    ]

    DEFAULT_CSS = """
    SqlBox > .choice { height: 1; padding: 0 1; }
    SqlBox > .choice > Select { width: 1fr; }
    SqlBox > .choice > Checkbox { width: auto; margin-left: 2; }
    SqlBox > SqlEditor { height: 35%; min-height: 5; }
    SqlBox > #answer { height: 1fr; background: transparent; scrollbar-size: 1 1; }
    SqlBox > #remark { height: auto; max-height: 4; padding: 0 1; color: $text-muted; }
    SqlBox > #remark.-failed { color: $text-error; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._asking: Worker[None] | None = None

    @property
    def dashboard(self) -> Dashboard:
        return cast("Dashboard", self.app)

    def compose(self) -> ComposeResult:
        with Horizontal(classes="choice"):
            titles = ((example.title, number) for number, example in enumerate(EXAMPLES))
            yield Select[int](titles, prompt="examples", id="examples", compact=True)
            yield Tick("every machine", "everywhere")
        yield SqlEditor(FIRST, id="sql")
        yield DataTable[Text](id="answer", zebra_stripes=True, cursor_type="row")
        yield Static(
            "ctrl+r runs it. Below a line `-- over` comes a SELECT over the answers of all.", id="remark", markup=False
        )

    @on(Select.Changed, "#examples")
    def _example(self) -> None:
        number = chosen(self.query_one("#examples", Select))
        if number is not None:
            example = EXAMPLES[number]
            self.query_one(SqlEditor).text = answer.joined(example.sql, example.over)
            self.query_one("#everywhere", Checkbox).value = bool(example.over)
            self.query_one(SqlEditor).focus()

    @on(SqlEditor.Run)
    def action_run(self) -> None:
        """One at a time; running again gives the one before up."""
        if self._asking is not None:
            self._asking.cancel()
        self._say("…")
        self._asking = self._run()

    def action_stop(self) -> None:
        if self._asking is not None and self._asking.is_running:
            self._asking.cancel()
            self._say("stopped")

    def _asked(self) -> tuple[str, str | None, bool]:
        sql, over = answer.parts(self.query_one(SqlEditor).text)
        return sql, over, self.query_one("#everywhere", Checkbox).value or over is not None

    @work(group="sql", exclusive=True, exit_on_error=False)
    async def _run(self) -> None:
        sql, over, everywhere = self._asked()
        began_s = time.monotonic()
        try:
            found = await self.dashboard.mesh.sql(sql, mesh=everywhere, over=over, limit=LIMIT)
        except OutbidError as error:
            self._say(f"✗ {error.message}", failed=True)
            return
        self._show(found)
        self._say(answer.remark(found, time.monotonic() - began_s))

    def _show(self, found: Table) -> None:
        table = self.query_one("#answer", DataTable)
        table.clear(columns=True)
        right = [answer.is_number(column.type) for column in found.columns]
        for column, number in zip(found.columns, right, strict=True):
            table.add_column(Text(column.name, justify="right" if number else "left"))
        for row in found.rows:
            cells = zip(row, right, strict=True)
            table.add_row(*(Text(answer.cell(value), justify="right" if number else "left") for value, number in cells))

    def _say(self, text: str, *, failed: bool = False) -> None:
        remark = self.query_one("#remark", Static)
        remark.set_class(failed, "-failed")
        remark.update(text)

    def action_save(self) -> None:
        title = "Save the answer as (a name that ends in .parquet keeps the types; else it is CSV)"
        self.dashboard.ask(title, "answer.csv", lambda name: self._save(Path(name).expanduser()))

    def _save(self, path: Path) -> None:
        sure = f"{path} is there already. Replace it?" if path.exists() else ""
        self.dashboard.act(self._export(path), f"Saved as {path}", sure=sure)

    async def _export(self, path: Path) -> None:
        """Runs the query again, with a larger limit. Raises OutbidError."""
        sql, over, everywhere = self._asked()
        mesh = self.dashboard.mesh
        if path.suffix == ".parquet":
            data = (await mesh.sql_parquet(sql, mesh=everywhere, over=over, limit=EXPORT_LIMIT)).data
        else:
            found = await mesh.sql(sql, mesh=everywhere, over=over, limit=EXPORT_LIMIT)
            data = answer.as_csv(found.names, found.rows).encode()
        try:
            await asyncio.to_thread(path.write_bytes, data)
        except OSError as error:
            raise StorageFailed(f"{path} cannot be written: {error.strerror or error}") from error
