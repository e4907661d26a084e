"""The logs of all nodes: heard, recalled, filtered, followed, taken away."""

from __future__ import annotations

import time
from pathlib import Path

from textual.widgets import Input, Static

from outbid_contracts.live import LogLine
from outbid_tui.app import Dashboard
from outbid_tui.looks import plain
from outbid_tui.screens.logs import LogsScreen
from outbid_tui.state import KEPT_LOGS
from outbid_tui.widgets.dialogs import Ask
from outbid_tui.widgets.log_view import LogView
from tests.fleet import Fleet, mesh_of
from tests.tui.conftest import Opened, shown, text_of, toasts
from tests.tui.imagined import ImaginedMesh, log_line


def screen(app: Dashboard) -> LogsScreen:
    assert isinstance(app.screen, LogsScreen)
    return app.screen


def actions(app: Dashboard) -> set[str]:
    return {line.action for line in screen(app).view.shown()}


async def test_lines_of_all_nodes_are_recalled_and_new_ones_come(dashboard: Opened, nodes: Fleet) -> None:
    async with dashboard("logs") as (app, pilot), mesh_of(nodes.nodes[1]) as mesh:
        view = screen(app).view
        await shown(pilot, lambda: {line.name for line in view.shown()} == {node.name for node in nodes.nodes})
        assert [line.time_ms for line in view.shown()] == sorted(line.time_ms for line in view.shown())
        before = view.count
        await mesh.node("pi").drain()
        await mesh.node("pi").undrain()
        await shown(pilot, lambda: any("drain" in line.action and line.name == "pi" for line in view.shown()))
        assert view.count > before


async def test_keys_filter_by_node_level_and_action(dashboard: Opened, nodes: Fleet) -> None:
    async with dashboard("logs") as (app, pilot):
        view = screen(app).view
        await shown(pilot, lambda: {line.name for line in view.shown()} == {node.name for node in nodes.nodes})
        for name in ("gaming-pc", "laptop", "pi"):
            await pilot.press("n")
            assert {line.name for line in view.shown()} == {name}
        await pilot.press("n", "home", "a")
        assert view.chosen is None or actions(app) == {view.chosen.action}
        assert len(actions(app)) == 1
        await pilot.press("a", "l", "l")
        assert all(line.level in ("error", "critical") for line in view.shown())


async def test_debug_lines_are_heard_once_they_are_asked_for(dashboard: Opened) -> None:
    async with dashboard("logs") as (app, pilot):
        await pilot.press("l", "l", "l", "l")
        assert screen(app).view.wanted.level == "debug"
        await shown(pilot, lambda: app.feed.log_level == "debug")


async def opened(app: Dashboard, lines: int) -> None:
    assert isinstance(app.mesh, ImaginedMesh)
    await app.mesh.told.wait()
    app.state.recalled_logs(map(log_line, range(lines)))
    screen(app).paint(frozenset({"logs"}))


async def test_it_follows_until_somebody_looks_back_and_again_on_end() -> None:
    app = Dashboard(ImaginedMesh(logs=0), start_on="logs")
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(app, 200)
        view = screen(app).view
        await shown(pilot, lambda: view.scroll_offset.y == view.max_scroll_y > 0)
        await pilot.press("up")
        assert not view.following
        held = view.scroll_offset.y
        app.state.took_logs(map(log_line, range(200, 260)))
        screen(app).paint(frozenset({"logs"}))
        await pilot.pause()
        assert view.scroll_offset.y == held
        assert "holds still" in text_of(screen(app).query_one("#log-filters", Static))
        await pilot.press("end")
        assert view.following
        await shown(pilot, lambda: view.scroll_offset.y == view.max_scroll_y)


async def test_a_search_narrows_as_one_types_and_escape_ends_it() -> None:
    app = Dashboard(ImaginedMesh(logs=0), start_on="logs")
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(app, 60)
        every = len(screen(app).view.shown())
        await pilot.press("slash", *"cold disk")
        await shown(pilot, lambda: actions(app) == {"runner_slow"})
        await pilot.press("enter")
        assert screen(app).view.has_focus
        await pilot.press("slash", "escape")
        await shown(pilot, lambda: len(screen(app).view.shown()) == every)


async def test_wrapped_lines_show_all_their_text() -> None:
    app = Dashboard(ImaginedMesh(logs=0), start_on="logs")
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(app, 30)
        cut = screen(app).view.virtual_size.height
        await pilot.press("w")
        assert screen(app).view.virtual_size.height > cut
        text = " ".join(" ".join(plain(row.part or "") for row in screen(app).view.rows).split())
        assert "its attempt of 01k0000003 is void, the job goes on elsewhere" in text


async def test_what_is_shown_is_copied_and_saved(tmp_path: Path) -> None:
    app = Dashboard(ImaginedMesh(logs=0), start_on="logs")
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(app, 60)
        await pilot.press("l", "l", "c")
        assert len(app.clipboard.splitlines()) == 10
        await pilot.press("up", "c")
        assert "attempt_lost" in app.clipboard
        assert len(app.clipboard.splitlines()) == 1
        for place, told in ((tmp_path / "no" / "x.txt", "cannot be written"), (tmp_path / "x.txt", "wrote 10 lines")):
            await pilot.press("s")
            await shown(pilot, lambda: isinstance(app.screen, Ask) and app.screen.query("Input:focus"))
            app.screen.query_one(Input).value = str(place)
            await pilot.press("enter")
            await shown(pilot, lambda told=told: any(told in toast for toast in toasts(app)))  # type: ignore[misc]
        assert len((tmp_path / "x.txt").read_text().splitlines()) == 10


async def test_five_thousand_lines_are_laid_out_quickly_and_more_push_the_oldest_out() -> None:
    app = Dashboard(ImaginedMesh(logs=0), start_on="logs")
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(app, KEPT_LOGS)
        view = screen(app).view
        begun_s = time.process_time()
        await pilot.press("w")
        assert time.process_time() - begun_s < 1.5, "CPU time of a key press, on a machine four times slower than usual"
        app.state.took_logs(map(log_line, range(KEPT_LOGS, KEPT_LOGS + 300)))
        screen(app).paint(frozenset({"logs"}))
        await pilot.pause()
        assert view.count == KEPT_LOGS
        assert view.shown()[-1] == log_line(KEPT_LOGS + 299)
        assert view.rows[0].line in list(app.state.logs)


async def test_lines_left_out_are_told() -> None:
    app = Dashboard(ImaginedMesh(logs=0), start_on="logs")
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(app, 1)
        line = LogLine(node=log_line(0).node, name="pi", time_ms=0, level="info", action="a", text="t", dropped=41)
        app.state.took_logs([line])
        screen(app).paint(frozenset({"logs"}))
        await pilot.pause()
        rows = screen(app).query_one(LogView).rows
        assert any("41 lines were left out" in plain(row.part or "") for row in rows)
