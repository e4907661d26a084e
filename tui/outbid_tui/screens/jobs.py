"""What waits, runs and is done."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Static

from outbid.cli import policies
from outbid_contracts.durable import Priority
from outbid_contracts.ids import JobId
from outbid_contracts.messages import JobRecord, JobState
from outbid_tui.base import MeshScreen
from outbid_tui.commands import Command
from outbid_tui.jobs import order, rows
from outbid_tui.jobs.views import ResultView, why
from outbid_tui.jobs.watching import WatchView
from outbid_tui.looks import JOB_MARKS, Cell
from outbid_tui.state import JobView, Kind, MeshState
from outbid_tui.widgets.choose import Choose
from outbid_tui.widgets.filter import Choice, Filter
from outbid_tui.widgets.lazy import LazyCells
from outbid_tui.widgets.table import LiveTable
from outbid_tui.widgets.toned import lines

EVERY_S = 1.0
"""How often ages and elapsed times are painted, where nothing else happens."""

ALIVE = ("waiting", "running")

PRIORITIES = (
    ("interactive", "somebody waits for it: as old as it is"),
    ("normal", "counts as half a minute younger"),
    ("batch", "counts as ten minutes younger"),
)

_STYLES = {"waiting": "$text-warning", "running": "$text-primary", "done": "$text-success", "failed": "$text-error"}


class JobsScreen(MeshScreen):
    NAME = "Jobs"
    HELP = """What waits, runs and is done in the whole mesh, newest first after what is alive.

**progress** tells the steps where the job counts them, else the time against what its node promised; of a job that
waits, for what; of one that ended, how the promise was kept. `why` has every bid and every number.

Text after `/` is looked for in all columns; several words must all be there. A click on a column's name sorts by it.
Cancel, retry and result go to the job's owner, whichever machine that is."""
    SHOWS: ClassVar[frozenset[Kind]] = frozenset({"jobs", "nodes"})
    DEFAULT_CSS = """
    JobsScreen > #about { height: 2; background: $boost; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "watch", "Watch", show=False),
        Binding("w", "watch", "Watch", tooltip="Its events and its text, from the beginning on"),
        Binding("y", "why", "Why", tooltip="Who bid what for it, who won and why, promised against took"),
        Binding("o", "result", "Result", tooltip="What it gave: its text, its files"),
        Binding("c", "cancel", "Cancel", tooltip="Stop it, wherever it runs"),
        Binding("r", "retry", "Retry", tooltip="Run one that failed or was cancelled again"),
        Binding("p", "priority", "Priority", tooltip="Of a durable job that waits: interactive, normal, batch"),
        Binding("slash", "filter", "Filter"),
        Binding("f", "state", "State", tooltip="Only those that wait, run, are done …", show=False),
        Binding("s", "sort", "Sort", show=False),
        Binding("escape", "clear", "All", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.words = ""
        self.only: JobState | None = None
        self.sort = "state"
        self.upwards = False
        self._listed: list[JobView] = []

    def body(self) -> ComposeResult:
        yield Filter()
        yield LiveTable(*rows.COLUMNS, empty="no jobs yet; ask something on the Chat screen", id="jobs")
        yield Static("", id="about")

    def on_mount(self) -> None:
        self.query_one(LiveTable).focus()
        self.set_interval(EVERY_S, self._tick)

    def _tick(self) -> None:
        if self.is_current:
            self.show_state(self.SHOWS)

    # -- what is shown ---------------------------------------------------------------------------------------------

    def show_state(self, changed: frozenset[Kind]) -> None:
        views = list(self.state.jobs.values())
        found = order.listed(views, self.state, words=self.words, only=self.only, sort=self.sort)
        self._listed = found[::-1] if self.upwards else found
        table = self.query_one(LiveTable)
        make = partial(self._cells, now_s=time.time())
        table.show([(view.record.id, LazyCells(partial(make, view))) for view in self._listed])
        table.say(
            "no jobs yet; ask something on the Chat screen" if not views else "no job is like that; escape shows all"
        )
        self.query_one(Filter).show(self._kinds(views), self.only or "", self._order())
        self._about()

    def _cells(self, view: JobView, now_s: float) -> Sequence[Cell]:
        return rows.cells(view, self.state, self.query_one(LiveTable).width_of("progress"), now_s)

    def on_resize(self) -> None:
        self.call_after_refresh(self.show_state, self.SHOWS)

    def _kinds(self, views: Sequence[JobView]) -> list[Choice]:
        counted = order.counted(views)
        kinds = [Choice("", f"all {len(views)}")]
        for state in order.STATES:
            mark = JOB_MARKS[state][0]
            text = f"{mark} {counted[state]}" if self.size.width >= 110 else f"{mark[0]} {counted[state]}"
            kinds.append(Choice(state, text, _STYLES.get(state, "$foreground 60%")))
        return kinds

    def _order(self) -> str:
        return f"{'▲' if self.upwards else '▼'} {self.sort}" if self.size.width >= 90 else ""

    def _about(self) -> None:
        """The job under the cursor, in words that its row has no room for."""
        view = self._view()
        about = self.query_one("#about", Static)
        shown = lines(_about(view, self.state)) if view else lines([""])
        if about.content != shown:
            about.update(shown)

    def _view(self) -> JobView | None:
        key = self.query_one(LiveTable).key
        return self.state.jobs.get(JobId(key)) if key else None

    def on_live_table_chosen(self) -> None:
        self._about()

    def on_live_table_opened(self) -> None:
        self.action_watch()

    # -- which are shown -------------------------------------------------------------------------------------------

    def on_live_table_heading(self, event: LiveTable.Heading) -> None:
        if event.column in order.SORTS:
            self._sort_by(event.column)

    def action_sort(self) -> None:
        at = order.KEYS.index(self.sort) if self.sort in order.KEYS else -1
        self._sort_by(order.KEYS[(at + 1) % len(order.KEYS)])

    def _sort_by(self, sort: str) -> None:
        self.upwards = not self.upwards if sort == self.sort else False
        self.sort = sort
        self.show_state(self.SHOWS)

    def action_filter(self) -> None:
        self.query_one(Filter).begin()

    def action_state(self) -> None:
        states: list[JobState | None] = [None, *order.STATES]
        self._show_only(states[(states.index(self.only) + 1) % len(states)])

    def action_clear(self) -> None:
        self.query_one(Filter).clear()
        self._show_only(None)

    def _show_only(self, state: JobState | None) -> None:
        self.only = state
        self.show_state(self.SHOWS)

    def on_filter_kind(self, event: Filter.Kind) -> None:
        self._show_only(cast("JobState | None", event.kind or None))

    def on_filter_changed(self, event: Filter.Changed) -> None:
        self.words = event.words
        self.show_state(self.SHOWS)

    def on_filter_left(self) -> None:
        self.query_one(LiveTable).focus()

    # -- what is done to one ---------------------------------------------------------------------------------------

    def action_watch(self) -> None:
        record = self._record()
        if record is None:
            return
        if not record.durable:
            self.notify("its text goes to its caller alone; here is its bid sheet (submit makes jobs to watch)")
            self.action_why()
            return
        title = f"{record.id}  {record.capability}  {record.model or ''}"
        self.app.push_screen(WatchView(self.dashboard.mesh, record.id, title))

    def action_why(self) -> None:
        if record := self._record():
            self.app.push_screen(why(self.dashboard.mesh, self.state, record.id))

    def action_result(self) -> None:
        if record := self._record():
            self.app.push_screen(ResultView(self.dashboard.mesh, record.id))

    def action_cancel(self) -> None:
        record = self._record()
        if record is None:
            return
        if record.state not in ALIVE:
            self.notify(f"job {record.id} is {record.state} already", severity="warning")
            return
        sure = f"Cancel job {record.id} ({record.capability}, {record.state})?"
        self.dashboard.act(self._cancel(record.id), f"job {record.id} is cancelled", sure=sure)

    async def _cancel(self, id: JobId) -> None:
        self._learn(await self.dashboard.mesh.cancel(id))

    def action_retry(self) -> None:
        record = self._record()
        if record is None:
            return
        if record.state in ALIVE or record.state == "done":
            self.notify(f"job {record.id} is {record.state}: only one that failed or was cancelled is run again")
            return
        self.dashboard.act(self._retry(record.id), lambda id: f"it runs again as {id}")

    async def _retry(self, id: JobId) -> JobId:
        again = await self.dashboard.mesh.attach(id).retry()
        self._learn(await again.status())
        self.query_one(LiveTable).choose(again.id)
        return again.id

    def action_priority(self) -> None:
        record = self._record()
        if record is None:
            return
        if record.state != "waiting" or not record.durable:
            self.notify("only a durable job that waits has a place in the queue to change", severity="warning")
            return

        def chosen(priority: str | None) -> None:
            if priority is not None:
                self.dashboard.act(
                    self._prioritise(record.id, cast(Priority, priority)), f"{record.id} waits as {priority}"
                )

        self.app.push_screen(Choose(f"Priority of {record.id}", PRIORITIES, record.priority), chosen)

    async def _prioritise(self, id: JobId, priority: Priority) -> None:
        self._learn(await self.dashboard.mesh.attach(id).prioritise(priority))

    def _learn(self, record: JobRecord) -> None:
        """At once, not with the next listing."""
        self.state.took_jobs([record])
        self.show_state(self.SHOWS)

    def _record(self) -> JobRecord | None:
        view = self._view()
        return view.record if view else None

    def commands(self) -> Iterable[Command]:
        view = self._view()
        if view is None:
            return
        id = view.record.id
        yield Command(f"Why: job {id}", "Its bids, who won and why", self.action_why)
        yield Command(f"Watch job {id}", "Its events and its text", self.action_watch)
        yield Command(f"Cancel job {id}", "Stop it, wherever it runs", self.action_cancel)
        yield Command(f"Retry job {id}", "Run it again, if it failed or was cancelled", self.action_retry)


def _about(view: JobView, state: MeshState) -> list[Cell]:
    """Two lines."""
    record = view.record
    terms = [f"owner {state.name_of(record.owner)}", "durable" if record.durable else "interactive"]
    terms += [f"{len(record.attempts)} attempts"] if len(record.attempts) > 1 else []
    terms += [f"by {record.submitter[: rows.USER]}"] if record.submitter else []
    what = f"{record.capability}  {record.model or ''}".rstrip()
    error = record.error.message if record.error else ""
    return [
        (
            (f"{record.id}  ", "bold"),
            (f"{what}  {'  '.join(policies.told(record.policy))}  ", ""),
            ("  ".join(terms), "dim"),
        ),
        ((error or _said(view), "bad" if error else "dim"),),
    ]


def _said(view: JobView) -> str:
    """Why it waits, or why its node won."""
    if view.record.state == "waiting":
        return rows.waits_for(view, time.time())
    return view.record.sheets[-1].why if view.record.sheets else view.note
