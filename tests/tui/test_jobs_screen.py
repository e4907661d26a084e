"""The Jobs screen: what it lists, and what its keys do to jobs of a real mesh."""

from __future__ import annotations

import io
import time
from typing import Any, cast

import pytest
from msgspec.structs import replace
from rich.console import Console
from textual.pilot import Pilot
from textual.widgets import Input, Static

from outbid.cli import explaining
from outbid.cli.job_listing import names_of
from outbid_contracts.ids import JobId
from outbid_contracts.messages import JobRecord
from outbid_tui.app import Dashboard
from outbid_tui.jobs import order, rows
from outbid_tui.jobs.watching import WatchView
from outbid_tui.looks import plain
from outbid_tui.screens.jobs import JobsScreen
from outbid_tui.state import JobView
from outbid_tui.widgets.choose import Choose
from outbid_tui.widgets.dialogs import Sure
from outbid_tui.widgets.sheet import Sheet
from outbid_tui.widgets.table import LiveTable
from tests.tui.conftest import Opened, shown
from tests.tui.made_up import NOW_S, Still, job, made_up

pytestmark = pytest.mark.asyncio

LONG = {"steps": 1000, "delay_s": 0.05}
COLUMN = {column.name: at for at, column in enumerate(rows.COLUMNS)}


def table(app: Dashboard) -> LiveTable:
    return app.screen.query_one(LiveTable)


def listed(app: Dashboard) -> list[str]:
    return [key for key, _ in table(app).rows]


def told(view: JobView, column: str, width: int = 40) -> str:
    return plain(rows.cells(view, made_up(), width, NOW_S)[COLUMN[column]])


def text_of(app: Dashboard, selector: str) -> str:
    """What a Static has, as it would be on a terminal without colours."""
    content = app.screen.query_one(selector, Static).content
    if isinstance(content, str) or not hasattr(content, "__rich_console__"):
        return str(content)
    console = Console(width=160, file=io.StringIO(), highlight=False)
    console.print(content)
    return cast(io.StringIO, console.file).getvalue()


async def on_view(app: Dashboard, pilot: Pilot[None], job: str, state: str) -> JobRecord:
    """Until the list tells that; the cursor is on it then."""
    await shown(pilot, lambda: job in app.state.jobs and app.state.jobs[JobId(job)].record.state == state)
    await shown(pilot, lambda: job in listed(app))
    table(app).choose(job)
    await pilot.pause()
    return app.state.jobs[JobId(job)].record


# -- what is listed, without a mesh ----------------------------------------------------------------------------------


async def test_what_runs_comes_first_then_what_waits_then_the_newest() -> None:
    state = made_up()
    states = [view.record.state for view in order.listed(state.jobs.values(), state)]
    assert states[:5] == ["running"] * 3 + ["waiting"] * 2
    ended = [view.record.created_ms for view in order.listed(state.jobs.values(), state)[5:]]
    assert ended == sorted(ended, reverse=True)


async def test_words_are_looked_for_in_every_column_and_all_must_be_there() -> None:
    state = made_up()
    found = order.listed(state.jobs.values(), state, words="CHAT gaming")
    assert found
    for view in found:
        assert view.record.capability == "llm.chat"
        assert "gaming-pc" in (state.name_of(view.record.node), state.name_of(view.record.owner))
    (failed,) = order.listed(state.jobs.values(), state, words="signal 9")
    assert failed.record.state == "failed"
    assert not order.listed(state.jobs.values(), state, words="chat nowhere")


async def test_progress_tells_steps_else_time_against_the_promise_and_says_when_that_is_broken() -> None:
    by_steps, by_clock, waiting, done = (job(n, 40) for n in (0, 3, 2, 8))
    assert "12/20 4.0s left" in told(by_steps, "progress")
    assert "2m24 of 2.0s" in told(by_clock, "progress")
    assert told(by_clock, "took") == "2m24"
    assert told(waiting, "progress").startswith("every able node is busy")
    assert told(done, "progress") == "16 % shorter"
    assert rows.cells(by_clock, made_up(), 40, NOW_S)[COLUMN["took"]] == (("2m24", "warn"),)


async def test_of_a_thousand_jobs_only_those_on_view_are_made_and_only_what_changed_is_painted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []
    cells = rows.cells

    def counted(view: JobView, *rest: Any) -> Any:
        made.append(view.record.id)
        return cells(view, *rest)

    monkeypatch.setattr(rows, "cells", counted)
    app = Still("jobs", made_up(1000))
    async with app.run_test(size=(120, 40)) as pilot:
        await shown(pilot, lambda: len(listed(app)) == 1000)
        made.clear()
        screen = cast(JobsScreen, app.screen)
        await pilot.press("pagedown", "pagedown", "down")
        here, line = table(app).key, table(app).scroll_offset.y
        assert here is not None
        assert line > 0
        newest = job(0, 1001)
        app.state.jobs[newest.record.id] = newest
        screen.show_state(frozenset({"jobs"}))
        await pilot.pause()
        assert table(app).key == here  # the cursor stays on its job, and that on its line
        assert table(app).scroll_offset.y == line + 1
        assert len(set(made)) < 200
        painted: list[Any] = []
        monkeypatch.setattr(table(app), "refresh", lambda *regions, **rest: painted.extend(regions))
        monkeypatch.setattr(time, "time", lambda: NOW_S)
        screen.show_state(frozenset({"jobs"}))
        painted.clear()
        screen.show_state(frozenset({"jobs"}))
        assert painted == []  # nothing changed
        view = app.state.jobs[JobId(here)]
        app.state.jobs[JobId(here)] = JobView(replace(view.record, state="cancelled"))
        screen.show_state(frozenset({"jobs"}))
        line = listed(app).index(here) - table(app).scroll_offset.y + 1
        assert {region.y for region in painted} == {line}


def _row(app: Dashboard, key: str) -> Any:
    return next(row for row in table(app).rows if row[0] == key)


async def test_keys_choose_states_and_orders_and_the_filter_is_left_as_it_was_entered() -> None:
    app = Still("jobs")
    async with app.run_test(size=(120, 40)) as pilot:
        await shown(pilot, lambda: len(listed(app)) == 40)
        await pilot.press("f", "f")
        assert {app.state.jobs[JobId(key)].record.state for key in listed(app)} == {"running"}
        await pilot.press("escape", "s")
        screen = cast(JobsScreen, app.screen)
        assert screen.sort == "age"
        await pilot.press("slash", *"emoji")
        await shown(pilot, lambda: 0 < len(listed(app)) < 40)
        await pilot.press("enter")
        assert app.focused is table(app)
        assert app.screen.query_one("#filter", Input).value == "emoji"
        await pilot.press("escape")
        await shown(pilot, lambda: len(listed(app)) == 40)


# -- what the keys do, on a real mesh --------------------------------------------------------------------------------


async def test_cancel_asks_first_and_retry_runs_it_again_as_a_new_job(dashboard: Opened) -> None:
    async with dashboard("jobs") as (app, pilot):
        job = await app.mesh.submit("test.steps", LONG)
        await on_view(app, pilot, job.id, "running")
        await pilot.press("c")
        await shown(pilot, lambda: isinstance(app.screen, Sure))
        await pilot.press("n")
        await shown(pilot, lambda: isinstance(app.screen, JobsScreen))
        assert (await job.status()).state == "running"
        await pilot.press("c")
        await shown(pilot, lambda: isinstance(app.screen, Sure))
        await pilot.press("y")
        await on_view(app, pilot, job.id, "cancelled")
        assert (await job.status()).state == "cancelled"
        await pilot.press("r")
        await on_view(app, pilot, f"{job.id}-retry1", "running")
        await app.mesh.cancel(f"{job.id}-retry1")


async def test_priority_of_a_job_that_waits_is_chosen_from_a_list(dashboard: Opened) -> None:
    async with dashboard("jobs") as (app, pilot):
        job = await app.mesh.submit("test.noop", {}, delay_s=600)
        app.state.took_jobs([await job.status()])
        await on_view(app, pilot, job.id, "waiting")
        await pilot.press("p")
        await shown(pilot, lambda: isinstance(app.screen, Choose))
        await pilot.press("down", "enter")
        await shown(pilot, lambda: app.state.jobs[job.id].record.priority == "batch")
        assert (await job.status()).priority == "batch"
        await job.cancel()


async def test_steps_of_a_running_job_move_its_bar(dashboard: Opened) -> None:
    async with dashboard("jobs") as (app, pilot):
        job = await app.mesh.submit("test.steps", LONG)
        await on_view(app, pilot, job.id, "running")
        view = app.state.jobs[job.id]
        await shown(pilot, lambda: view.step > 5 and view.steps == 1000)
        await shown(pilot, lambda: "/1000" in plain(_row(app, job.id)[1][COLUMN["progress"]]))
        await app.mesh.cancel(job.id)


async def test_watch_shows_the_text_and_the_course_of_a_durable_job_to_its_end(dashboard: Opened) -> None:
    async with dashboard("jobs") as (app, pilot):
        job = await app.mesh.submit("test.echo", {"text": "so it goes on", "chunks": 4, "delay_s": 0.1})
        await shown(pilot, lambda: job.id in listed(app))
        table(app).choose(job.id)
        await pilot.press("w")
        await shown(pilot, lambda: isinstance(app.screen, WatchView))
        await shown(pilot, lambda: cast(WatchView, app.screen).story.ended)
        await shown(pilot, lambda: "so it goes on" in text_of(app, "#text"))
        assert "runs it" in text_of(app, "#lines")
        await pilot.press("escape")
        await shown(pilot, lambda: isinstance(app.screen, JobsScreen))


async def test_why_says_what_outbid_why_says(dashboard: Opened) -> None:
    async with dashboard("jobs") as (app, pilot):
        job = await app.mesh.submit("test.echo", {"text": "x", "delay_s": 0.3})
        await job.result(30)
        record = await on_view(app, pilot, job.id, "done")
        await pilot.press("y")
        await shown(pilot, lambda: isinstance(app.screen, Sheet))
        await shown(pilot, lambda: "was accepted" in text_of(app, "#sheet"))
        record = await app.mesh.job(job.id)
        console = Console(width=160, file=io.StringIO(), highlight=False)
        for part in explaining.told(record, names_of(await app.mesh.nodes(), [record]), verbose=True):
            console.print(part)
        assert text_of(app, "#sheet").split() == cast(io.StringIO, console.file).getvalue().split()


async def test_result_shows_what_a_job_gave_and_saves_its_files(
    dashboard: Opened, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with dashboard("jobs") as (app, pilot):
        job = await app.mesh.submit("test.files", {"sizes": (1000, 2000)})
        await job.result(30)
        await on_view(app, pilot, job.id, "done")
        await pilot.press("o")
        await shown(pilot, lambda: isinstance(app.screen, Sheet))
        await shown(pilot, lambda: f"{job.id}.1.0" in text_of(app, "#sheet"))
        await pilot.press("s")
        await shown(pilot, lambda: sorted(path.stat().st_size for path in tmp_path.iterdir()) == [1000, 2000])
