"""What the nodes remember: plots, a month's report, and queries of one's own."""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid, Horizontal
from textual.widgets import Label, Static, TabbedContent, TabPane

from outbid import OutbidError
from outbid_tui.base import MeshScreen
from outbid_tui.history.plots import Plot
from outbid_tui.history.questions import LIMIT, OVER, PLOTS, RANGES, RATIOS, Answer, answers, question
from outbid_tui.history.report import ReportTable
from outbid_tui.history.sql_box import SqlBox
from outbid_tui.state import Kind

EVERY_S = 10.0
"""How often the nodes are asked while somebody looks at the plots."""

SHARE = 0.1
"""Of the time at most that questions take: a large mesh is asked less often."""


class HistoryScreen(MeshScreen):
    NAME = "History"
    HELP = """What the nodes remember, by machine. **t** changes how far the plots go back, **enter** on one shows it
alone; *taken against promised* is 1 where a promise was exact, above it the work took longer. **p**, **m** and **s** go
to the plots, the month's report and the SQL box. There **ctrl+r** runs the query, **ctrl+s** saves the whole answer as
CSV or Parquet; the tables are in docs/reference/history.md and in `SHOW TABLES`."""
    SHOWS: ClassVar[frozenset[Kind]] = frozenset({"link"})
    HORIZONTAL_BREAKPOINTS: ClassVar[list[tuple[int, str]] | None] = [(0, "-narrow"), (70, "-wide")]  # type: ignore[misc]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "range", "Time"),
        Binding("p", "tab('plots')", "Plots"),
        Binding("m", "tab('month')", "Month"),
        Binding("s", "tab('query')", "SQL"),
    ]

    DEFAULT_CSS = """
    HistoryScreen TabbedContent { height: 1fr; }
    HistoryScreen TabPane { padding: 0; }
    HistoryScreen Tabs .underline--bar { color: $accent; }
    HistoryScreen #ranges { height: 1; padding: 0 1; }
    HistoryScreen #ranges > Label { width: auto; padding: 0 1; color: $text-muted; }
    HistoryScreen #ranges > Label.-chosen { color: $text; text-style: bold reverse; }
    HistoryScreen #trouble { width: 1fr; text-align: right; color: $text-warning; }
    HistoryScreen #grid { grid-size: 2 2; height: 1fr; }
    HistoryScreen.-narrow #grid { grid-size: 1 4; }
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.range = RANGES[0]
        self.asked = 0
        """How often the nodes were asked."""
        self._on_view = asyncio.Event()
        self._now = asyncio.Event()
        """The plots are wanted at once."""

    def body(self) -> ComposeResult:
        with TabbedContent(id="tabs"):
            with TabPane("Plots", id="plots"):
                with Horizontal(id="ranges"):
                    for range in RANGES:
                        yield Label(range.name, id=f"range-{range.span_s}")
                    yield Static(id="trouble", markup=False)
                with Grid(id="grid"):
                    for name, title in PLOTS.items():
                        yield Plot(title, name, ratio=name in RATIOS)
            with TabPane("Month", id="month"):
                yield ReportTable()
            with TabPane("SQL", id="query"):
                yield SqlBox()

    def on_mount(self) -> None:
        self._show_range()
        self.query_one("#speed").focus()
        self._follow()

    def on_screen_resume(self) -> None:
        self._look()

    def on_screen_suspend(self) -> None:
        self._on_view.clear()

    def show_state(self, changed: frozenset[Kind]) -> None:
        self._look()

    @on(TabbedContent.TabActivated)
    def _tab_changed(self, event: TabbedContent.TabActivated) -> None:
        self._look()
        if event.pane.id == "month" and self.state.connected:
            self.query_one(ReportTable).ask()

    def _look(self) -> None:
        """Ask only while somebody looks, and there is somebody to ask."""
        looked_at = self.is_current and self.query_one("#tabs", TabbedContent).active == "plots"
        (self._on_view.set if looked_at and self.state.connected else self._on_view.clear)()

    @work(group="plots", exit_on_error=False)
    async def _follow(self) -> None:
        while True:
            await self._on_view.wait()
            self._now.clear()
            began_s = time.monotonic()
            await self._ask()
            took_s = time.monotonic() - began_s
            try:
                async with asyncio.timeout(max(EVERY_S, took_s / SHARE)):
                    await self._now.wait()
            except TimeoutError:
                pass

    async def _ask(self) -> None:
        self.asked += 1
        range, now_s, trouble = self.range, time.time(), ""
        try:
            found = await self.dashboard.mesh.sql(question(range, now_s), mesh=True, over=OVER, limit=LIMIT)
        except OutbidError as error:
            trouble = error.message
        else:
            shown = answers(found.rows)
            for name in PLOTS:
                self.query_one(f"#{name}", Plot).show(shown.get(name, Answer()), range, now_s)
            trouble = " · ".join(f"without {silent.name}: {silent.why}" for silent in found.silent)
        self.query_one("#trouble", Static).update(trouble)

    # -- keys ----------------------------------------------------------------------------------------------------------

    def action_range(self) -> None:
        self.range = RANGES[(RANGES.index(self.range) + 1) % len(RANGES)]
        self._show_range()
        self._now.set()

    def action_tab(self, name: str) -> None:
        self.query_one("#tabs", TabbedContent).active = name
        wanted = {"plots": "#speed", "month": "#report", "query": "#sql"}[name]
        self.query_one(wanted).focus()

    def on_click(self, event: Any) -> None:
        id = getattr(event.widget, "id", None) or ""
        for range in RANGES:
            if id == f"range-{range.span_s}":
                self.range = range
                self._show_range()
                self._now.set()

    def _show_range(self) -> None:
        for range in RANGES:
            self.query_one(f"#range-{range.span_s}", Label).set_class(range is self.range, "-chosen")
