"""The machines of a real mesh: on view, chosen, and given orders."""

from __future__ import annotations

from textual.pilot import Pilot
from textual.widgets import Input

from outbid import Mesh
from outbid_node.identity import jwt
from outbid_node.identity.keyring import Keyring
from outbid_node.identity.keys import new_user
from outbid_tui.app import Dashboard
from outbid_tui.looks import plain
from outbid_tui.screens.logs import LogsScreen
from outbid_tui.screens.mesh import NodesScreen
from outbid_tui.state import Machine
from outbid_tui.widgets.cards import CardGrid
from outbid_tui.widgets.dialogs import Ask, Sure
from outbid_tui.widgets.pane import TextPane
from outbid_tui.widgets.table import LiveTable
from tests.fleet import Fleet, NodeProcess, mesh_of
from tests.tui.conftest import Opened, shown, toasts


def machine(app: Dashboard, name: str) -> Machine:
    return next(one for one in app.state.machines.values() if one.presence.name == name)


def screen(app: Dashboard) -> NodesScreen:
    assert isinstance(app.screen, NodesScreen)
    return app.screen


def names(app: Dashboard) -> list[str]:
    table = screen(app).query_one(LiveTable)
    return [plain(cells[0]).removesuffix(" ⌂") for _, cells in table.rows]


async def choose_pi(app: Dashboard, pilot: Pilot[None]) -> None:
    await shown(pilot, lambda: names(app) == ["gaming-pc", "laptop", "pi"])
    await pilot.press("end")
    await shown(pilot, lambda: said(app).startswith("pi"))


def said(app: Dashboard) -> str:
    return "\n".join(map(plain, screen(app).query_one(TextPane).lines))


async def test_rows_are_shown_where_it_is_narrow_and_cards_where_they_fit(dashboard: Opened) -> None:
    async with dashboard(size=(80, 24)) as (app, pilot):
        rows, cards = screen(app).query_one(LiveTable), screen(app).query_one(CardGrid)
        await shown(pilot, lambda: names(app) == ["gaming-pc", "laptop", "pi"])
        assert rows.display
        assert not cards.display
        await pilot.press("down", "down")
        await shown(pilot, lambda: screen(app).chosen == machine(app, "pi").presence.node)
        await pilot.resize_terminal(120, 40)
        await shown(pilot, lambda: cards.display and not rows.display)
        await shown(pilot, lambda: cards.key == screen(app).chosen == machine(app, "pi").presence.node)
        await pilot.press("v")
        await shown(pilot, lambda: rows.display and rows.key == machine(app, "pi").presence.node)


async def test_the_details_are_those_of_the_chosen_machine(dashboard: Opened) -> None:
    async with dashboard(size=(80, 24)) as (app, pilot):
        await shown(pilot, lambda: "gaming-pc" in said(app) and "test.echo" in said(app))
        await pilot.press("down")
        await shown(pilot, lambda: said(app).startswith("laptop"))
        await pilot.click(LiveTable, offset=(5, 3))
        await shown(pilot, lambda: said(app).startswith("pi"))
        await pilot.press("i")
        assert not screen(app).query_one(TextPane).display


async def test_what_runs_on_a_machine_is_shown_with_its_progress(dashboard: Opened, nodes: Fleet) -> None:
    async with dashboard(size=(80, 24)) as (app, pilot), mesh_of(nodes.nodes[0]) as mesh:
        job = await mesh.submit("test.steps", {"steps": 10_000, "delay_s": 0.05})
        await shown(pilot, lambda: job.id in app.state.jobs and app.state.jobs[job.id].record.node)
        node = app.state.jobs[job.id].record.node
        assert node
        screen(app).query_one(LiveTable).choose(node)
        await shown(pilot, lambda: f"{job.id[-8:]} test.steps" in said(app) and "/10000" in said(app))
        await mesh.cancel(job.id)
        await shown(pilot, lambda: job.id[-8:] not in said(app))


async def test_a_machine_is_drained_and_takes_work_again(dashboard: Opened) -> None:
    async with dashboard(size=(80, 24)) as (app, pilot):
        await choose_pi(app, pilot)
        await pilot.press("d")
        await shown(pilot, lambda: machine(app, "pi").presence.state == "draining")
        await shown(pilot, lambda: "draining" in said(app))
        await shown(pilot, lambda: "pi drains" in toasts(app))
        await pilot.press("d")
        await shown(pilot, lambda: machine(app, "pi").presence.state == "up")
        await shown(pilot, lambda: "pi takes work again" in toasts(app))


async def test_draining_a_machine_that_works_asks_first(dashboard: Opened, nodes: Fleet) -> None:
    async with dashboard(size=(80, 24)) as (app, pilot), mesh_of(nodes.nodes[0]) as mesh:
        job = await mesh.submit("test.steps", {"steps": 10_000, "delay_s": 0.05})
        await shown(pilot, lambda: [one for one in app.state.machines.values() if one.presence.running])
        busy = next(one.presence for one in app.state.machines.values() if one.presence.running)
        screen(app).query_one(LiveTable).choose(busy.node)
        await shown(pilot, lambda: screen(app).chosen == busy.node)
        await pilot.press("d")
        await shown(pilot, lambda: isinstance(app.screen, Sure) and f"Drain {busy.name}?" in app.screen.question)
        await pilot.press("n")
        await mesh.cancel(job.id)
        assert machine(app, busy.name).presence.state == "up"


async def test_a_machine_is_paused_and_resumed(dashboard: Opened) -> None:
    async with dashboard(size=(80, 24)) as (app, pilot):
        await choose_pi(app, pilot)
        await pilot.press("p")
        await shown(pilot, lambda: "pi is paused" in toasts(app))
        await shown(pilot, lambda: "paused" in machine(app, "pi").presence.in_use)
        await shown(pilot, lambda: "◒ in use" in said(app))
        await pilot.press("p")
        await shown(pilot, lambda: "pi works for others again" in toasts(app))
        await shown(pilot, lambda: not machine(app, "pi").presence.in_use)


async def test_quiet_hours_are_asked_for_and_set(dashboard: Opened, nodes: Fleet) -> None:
    async with dashboard(size=(80, 24)) as (app, pilot), mesh_of(nodes.nodes[0]) as mesh:
        await choose_pi(app, pilot)
        await pilot.press("u")
        await shown(pilot, lambda: isinstance(app.screen, Ask) and app.screen.query("Input:focus"))
        app.screen.query_one(Input).value = "01:00-02:00; sat 03:00-04:00"
        await pilot.press("enter")
        await shown(pilot, lambda: "pi is quiet 01:00-02:00, sat 03:00-04:00" in toasts(app))
        await pilot.press("u")
        await shown(pilot, lambda: isinstance(app.screen, Ask) and app.screen.query("Input:focus"))
        assert app.screen.query_one(Input).value == "01:00-02:00; sat 03:00-04:00"
        app.screen.query_one(Input).value = "-"
        await pilot.press("enter")
        await shown(pilot, lambda: "pi has no quiet hours" in toasts(app))
        assert (await mesh.node("pi").quiet()).hours == ()


def viewers(node: NodeProcess) -> Mesh:
    key = Keyring(node.state.with_name("keyring")).find(node.mesh)
    assert key is not None
    user = new_user()
    file = node.state.parent / f"{user.public}.creds"
    file.write_text(jwt.credentials(jwt.user(key, "viewer", "ann", user.public, expires_s=600), user))
    return Mesh(node.local.url, creds=file)


async def test_a_viewer_sees_everything_and_is_told_what_it_may_not(nodes: Fleet) -> None:
    app = Dashboard(viewers(nodes.nodes[0]))
    async with app.run_test(size=(80, 24)) as pilot:
        await shown(pilot, lambda: app.state.connected and names(app) == ["gaming-pc", "laptop", "pi"])
        await shown(pilot, lambda: all(len(one.cpu) > 1 for one in app.state.machines.values()))
        await pilot.press("d")
        await shown(pilot, lambda: any("do not allow" in toast for toast in toasts(app)))
        assert machine(app, "gaming-pc").presence.state == "up"
        await pilot.press("8")
        await shown(pilot, lambda: isinstance(app.screen, LogsScreen) and "administrator" in app.screen.view.empty)
        assert app.state.connected


async def test_a_machine_that_leaves_is_shown_as_away_and_is_back_when_it_returns(
    dashboard: Opened, nodes: Fleet
) -> None:
    leaving = nodes.nodes[2]
    async with dashboard(size=(80, 24)) as (app, pilot):
        leaving.stop()
        await shown(pilot, lambda: app.state.counts().up == 2)
        await shown(pilot, lambda: [sleeper.name for sleeper in app.state.sleepers()] == ["pi"])
        await shown(pilot, lambda: names(app) == ["gaming-pc", "laptop", "pi"])
        await choose_pi(app, pilot)
        await shown(pilot, lambda: "○ away" in said(app))
        await pilot.press("d")
        await shown(pilot, lambda: "pi is away" in toasts(app))
        leaving.spawn()
        await leaving.until_up()
        await shown(pilot, lambda: app.state.counts() == (3, 0, 0, 0), within_s=60)
        await shown(pilot, lambda: "● up" in said(app))
