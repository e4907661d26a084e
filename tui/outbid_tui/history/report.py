"""A month's report as a table."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Label, Select, Static

from outbid import OutbidError
from outbid_contracts.history import BY, By, Report, ReportRow
from outbid_tui.asking import chosen

if TYPE_CHECKING:
    from outbid_tui.app import Dashboard

MONTHS = 12
NUMBERS = ("jobs", "failed", "hours", "kWh", "dollars")


def months(today: datetime.date) -> Iterator[str]:
    """This month and those before.

    >>> list(months(datetime.date(2026, 2, 3)))[:3]
    ['2026-02', '2026-01', '2025-12']
    """
    count = today.year * 12 + today.month - 1
    for n in range(count, count - MONTHS, -1):
        yield f"{n // 12}-{n % 12 + 1:02}"


class ReportTable(Vertical):
    DEFAULT_CSS = """
    ReportTable > .choice { height: 1; padding: 0 1; margin-bottom: 1; }
    ReportTable > .choice > Label { width: auto; color: $text-muted; padding: 0 1; }
    ReportTable > .choice > Select { width: 18; }
    ReportTable > DataTable { height: 1fr; background: transparent; scrollbar-size: 1 1; }
    ReportTable > Static { height: auto; padding: 0 1; color: $text-muted; }
    """

    def compose(self) -> ComposeResult:
        shown = list(months(datetime.date.today()))
        with Horizontal(classes="choice"):
            yield Label("Month")
            yield Select[str](((m, m) for m in shown), value=shown[0], allow_blank=False, id="month", compact=True)
            yield Label("by")
            yield Select[By](((by, by) for by in BY), value="node", allow_blank=False, id="by", compact=True)
        yield DataTable[Text](id="report", zebra_stripes=True, cursor_type="row")
        yield Static(id="report-remark", markup=False)

    @on(Select.Changed)
    def _changed(self) -> None:
        self.ask()

    @work(group="report", exclusive=True, exit_on_error=False)
    async def ask(self) -> None:
        month, by = (chosen(self.query_one(id, Select)) for id in ("#month", "#by"))
        try:
            found = await cast("Dashboard", self.app).mesh.report(month, by=cast(By, by))
        except OutbidError as error:
            self.query_one(Static).update(f"✗ {error.message}")
            return
        self._show(found)

    def _show(self, found: Report) -> None:
        table = self.query_one(DataTable)
        table.clear(columns=True)
        table.add_column(found.by[0])
        for name in NUMBERS:
            table.add_column(Text(name, justify="right"))
        table.add_column("units of work")
        for row in found.rows:
            table.add_row(*_cells(row, row.key[0]))
        if len(found.rows) > 1:
            table.add_row(*_cells(found.total, "all", "bold"))
        silent = [f"without {one.name}: {one.why}" for one in found.silent]
        self.query_one(Static).update(" · ".join(silent if found.rows else ["Nothing ran.", *silent]))


def _cells(row: ReportRow, name: str, style: str = "") -> Iterator[Text]:
    numbers = (f"{row.jobs:,}", f"{row.failed:,}", *map(amount, (row.hours, row.energy_kwh, row.cost_usd)))
    yield Text(name, style=style)
    for number in numbers:
        yield Text(number, style=style, justify="right")
    yield Text(", ".join(f"{value:,.4g} {unit}" for unit, value in row.units.items()), style=style)


def amount(number: float) -> str:
    """
    >>> amount(1234.5), amount(0.5), amount(0.00012345), amount(0)
    ('1,234.50', '0.50', '0.00012', '0')
    """
    if abs(number) >= 0.1:
        return f"{number:,.2f}"
    return f"{number:.6f}"[:7] if abs(number) >= 1e-5 else "0"
