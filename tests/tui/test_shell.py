"""What all screens share: tabs, keys, palette, help, dialogs, the connection."""

from __future__ import annotations

import asyncio
from functools import partial

from textual.command import CommandPalette
from textual.widgets import Markdown

from outbid import Mesh
from outbid_contracts.errors import OutbidError
from outbid_tui.app import Dashboard
from outbid_tui.base import MeshScreen
from outbid_tui.commands import Command
from outbid_tui.screens import SCREENS
from outbid_tui.widgets.dialogs import Ask, Sure
from outbid_tui.widgets.help import HelpScreen
from outbid_tui.widgets.top import Banner, TopLine
from tests.fleet import Fleet, mesh_of
from tests.tui.conftest import Opened, shown, text_of, toasts


def on_view(app: Dashboard, kind: type[MeshScreen]) -> bool:
    return isinstance(app.screen, kind) and app.screen.whole


async def test_each_key_and_each_tab_shows_its_screen_and_a_screen_is_made_once(dashboard: Opened) -> None:
    async with dashboard() as (app, pilot):
        seen = {}
        for number, (name, kind) in enumerate(SCREENS, 1):
            await pilot.press(f"f{number}")
            await shown(pilot, partial(on_view, app, kind))
            seen[name] = app.screen
        await pilot.press("f1")
        await shown(pilot, lambda: app.screen is seen["mesh"])
        await pilot.press("2")
        await shown(pilot, lambda: app.screen is seen["jobs"])
        await pilot.click("TabLine", offset=(3, 0))
        await shown(pilot, lambda: app.screen is seen["mesh"])
        assert all(isinstance(screen, MeshScreen) for screen in seen.values())


async def test_every_screen_stands_on_small_and_wide_terminals(dashboard: Opened) -> None:
    async with dashboard() as (app, pilot):
        for width, height in ((80, 24), (200, 60)):
            await pilot.resize_terminal(width, height)
            for name, _ in SCREENS:
                app.action_show(name)
                await shown(
                    pilot, lambda: app.screen.query(TopLine) and "gaming-pc" in text_of(app.screen.query_one(TopLine))
                )
                for widget in app.screen.query("*"):
                    assert widget.region.right <= width, f"{widget} on {name} leaves the terminal"


async def test_the_top_line_counts_machines_and_jobs(dashboard: Opened, nodes: Fleet) -> None:
    async with dashboard() as (app, pilot), mesh_of(nodes.nodes[1]) as mesh:
        line = app.screen.query_one(TopLine)
        await shown(pilot, lambda: "3/3 up" in text_of(line))
        job = await mesh.submit("test.steps", {"steps": 10_000, "delay_s": 0.1})
        await shown(pilot, lambda: "▶ 1" in text_of(line))
        await mesh.cancel(job.id)
        await shown(pilot, lambda: "▶ 0" in text_of(line))


async def test_every_screen_has_help_with_its_own_words_and_keys(dashboard: Opened) -> None:
    async with dashboard() as (app, pilot):
        for name, kind in SCREENS:
            app.action_show(name)
            await shown(pilot, partial(on_view, app, kind))
            app.action_help()
            await shown(pilot, lambda: isinstance(app.screen, HelpScreen) and app.screen.query(Markdown))
            source = app.screen.query_one(Markdown).source
            assert kind.HELP in source
            assert "- `^p` Open the command palette" in source
            await pilot.press("escape")
            assert app.current_mode == name


async def test_the_palette_knows_the_screens_and_every_operation(dashboard: Opened, nodes: Fleet) -> None:
    async with dashboard() as (app, pilot), mesh_of(nodes.nodes[0]) as mesh:
        job = await mesh.submit("test.steps", {"steps": 10_000, "delay_s": 0.1})
        await shown(pilot, lambda: job.id in app.state.jobs)
        titles = {command.title for command in (*app.screen_commands(), *app.operations())}
        assert {f"Go to {kind.NAME}" for _, kind in SCREENS} <= titles
        assert {
            f"{verb} {node.name}" for node in nodes.nodes for verb in ("Drain", "Pause", "Quiet hours of")
        } <= titles
        assert f"Cancel job {job.id}" in titles
        await mesh.cancel(job.id)


async def test_a_command_of_the_palette_is_found_by_typing_and_done(dashboard: Opened) -> None:
    async with dashboard() as (app, pilot):
        await pilot.press("ctrl+p")
        await shown(pilot, lambda: isinstance(app.screen, CommandPalette))
        await pilot.press(*"go to log")
        await pilot.pause(0.5)
        await pilot.press("enter", "enter")
        await shown(pilot, lambda: app.current_mode == "logs")


async def test_what_cannot_be_undone_is_done_only_after_a_yes(dashboard: Opened) -> None:
    done: list[str] = []

    async def deed() -> str:
        done.append("done")
        return "the deed"

    async with dashboard() as (app, pilot):
        for keys in (["escape"], ["n"], ["enter"]):  # the focus is on no
            app.act(deed(), "never said", sure="Sure?")
            await shown(pilot, lambda: isinstance(app.screen, Sure))
            await pilot.press(*keys)
            await shown(pilot, lambda: not isinstance(app.screen, Sure))
        assert done == []
        app.act(deed(), lambda reply: f"did {reply}", sure="Sure?")
        await shown(pilot, lambda: isinstance(app.screen, Sure))
        await pilot.press("y")
        await shown(pilot, lambda: toasts(app) == ["did the deed"])


async def test_what_the_mesh_says_against_it_is_shown(dashboard: Opened) -> None:
    async def refused() -> None:
        raise OutbidError("[red]no room[/red]")

    async with dashboard() as (app, pilot):
        app.act(refused(), "never said")
        await shown(pilot, lambda: toasts(app) == ["[red]no room[/red]"])


async def test_a_line_that_is_given_up_changes_nothing(dashboard: Opened) -> None:
    given: list[str] = []
    async with dashboard() as (app, pilot):
        app.ask("Name", "old", given.append)
        await shown(pilot, lambda: isinstance(app.screen, Ask))
        await pilot.press("escape")
        app.ask("Name", "old", given.append)
        await shown(pilot, lambda: isinstance(app.screen, Ask) and app.screen.query("Input:focus"))
        await pilot.press("end", "1", "enter")
        await shown(pilot, lambda: given == ["old1"])


async def test_without_a_node_it_says_so_and_waits(tmp_path: object) -> None:
    app = Dashboard(Mesh(state=str(tmp_path)))
    async with app.run_test() as pilot:
        await shown(pilot, lambda: "outbid up" in text_of(app.screen.query_one(Banner)))
        assert app.screen.query_one(Banner).has_class("lost")


async def test_a_screen_adds_commands_of_its_own(dashboard: Opened) -> None:
    async with dashboard() as (app, _pilot):
        assert isinstance(app.screen, MeshScreen)
        assert all(isinstance(command, Command) for command in app.screen.commands())


async def test_a_lost_connection_is_told_and_what_was_missed_is_asked_for(dashboard: Opened, nodes: Fleet) -> None:
    """The node that the dashboard is connected to is killed, a job is done meanwhile, and the node comes back."""
    first, second, _ = nodes.nodes
    async with dashboard() as (app, pilot):
        banner = app.screen.query_one(Banner)
        await shown(pilot, lambda: not banner.display)
        first.kill()
        await shown(pilot, lambda: banner.display and "connection lost" in text_of(banner))
        async with mesh_of(second) as mesh:
            job = await mesh.submit("test.echo", {"text": "missed"})
            await job.result()
        first.spawn()
        await first.until_up()
        await shown(pilot, lambda: not banner.display, within_s=60)
        await shown(pilot, lambda: job.id in app.state.jobs and app.state.jobs[job.id].record.state == "done")
        await shown(pilot, lambda: app.state.counts().up == 3)
    await asyncio.wait_for(nodes.until_whole(), 60)
