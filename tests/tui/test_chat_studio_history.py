"""Chat, pictures and history on three real nodes with real models. The last test kills one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Checkbox, DataTable, Input, Markdown, Select, Static

from outbid import Policy
from outbid_tui.app import Dashboard
from outbid_tui.chat.conversation import Turn
from outbid_tui.chat.widgets import Composer, Exchange
from outbid_tui.history.editor import SqlEditor
from outbid_tui.history.plots import Plot
from outbid_tui.screens import history
from outbid_tui.screens.chat import ChatScreen
from outbid_tui.screens.history import HistoryScreen
from outbid_tui.screens.studio import StudioScreen
from outbid_tui.studio.gallery import Thumb
from outbid_tui.studio.view import PictureView
from tests.fleet import TEST_CAPABILITY, Fleet, fleet
from tests.tui import conftest
from tests.tui.conftest import NODES, Opened

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

PATIENT_S = 90

FIRST_CHOICE = "laptop"
"""Not the one that the dashboard is connected to."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("asking")) as nodes:
        asyncio.run(nodes.start(*NODES, flags=(*TEST_CAPABILITY, "--set", "image.engine=onnx")))
        yield nodes


async def shown(pilot: Pilot[None], true: Callable[[], object]) -> None:
    """Models are loaded meanwhile."""
    await conftest.shown(pilot, true, PATIENT_S)


async def typed(pilot: Pilot[None], text: str) -> None:
    """Into whatever has the focus, as keys."""
    await pilot.press(*text)


# -- chat --------------------------------------------------------------------------------------------------------------


def chat_of(app: Dashboard) -> ChatScreen:
    assert isinstance(app.screen, ChatScreen)
    return app.screen


def words(app: Dashboard, exchange: Exchange, part: str) -> str:
    return str(exchange.query_one(part, Static).render())


async def asked(app: Dashboard, pilot: Pilot[None], question: str, tokens: int) -> Turn:
    """Always of the same machine, so that the model is loaded once."""
    screen = chat_of(app)
    before = len(screen.turns)
    await shown(pilot, lambda: FIRST_CHOICE in getattr(screen.query_one("#prefer", Select), "offered", ()))
    screen.query_one("#prefer", Select).value = FIRST_CHOICE
    screen.query_one("#max_tokens", Input).value = str(tokens)
    screen.query_one("#temperature", Input).value = "0"
    screen.query_one(Composer).text = question
    await pilot.press("enter")
    await shown(pilot, lambda: len(screen.turns) > before)
    return screen.turns[-1]


async def test_an_answer_streams_in_goes_on_off_view_and_the_next_question_knows_it(
    dashboard: Opened, tmp_path: Path
) -> None:
    async with dashboard("chat") as (app, pilot):
        screen = chat_of(app)
        turn = await asked(app, pilot, "count to ten", 32)
        await shown(pilot, lambda: turn.tokens > 2)
        await pilot.press("f1")
        await shown(pilot, lambda: turn.stage == "done")
        await pilot.press("f4")
        await shown(pilot, lambda: app.screen is screen)

        exchange = screen.query_one(Exchange)
        await shown(pilot, lambda: exchange.query_one(Markdown).source == turn.text)
        facts = words(app, exchange, ".facts")
        assert turn.node == FIRST_CHOICE
        assert facts.startswith(f"{turn.node} · smollm2-135m-instruct · ")
        assert "tok/s · first token" in facts
        assert turn.why in words(app, exchange, ".why")

        second = await asked(app, pilot, "go on", 8)
        await shown(pilot, lambda: second.stage == "done")
        assert len(screen.query(Exchange)) == 2
        assert screen.query_one(Composer).text == ""

        await pilot.press("ctrl+s")
        file = tmp_path / "talk.md"
        await shown(pilot, lambda: app.screen.query(Input))
        app.screen.query_one(Input).value = str(file)
        await pilot.press("enter")
        await shown(pilot, file.exists)
        await shown(pilot, lambda: turn.text.strip() in file.read_text())

        await pilot.press("ctrl+n")
        await shown(pilot, lambda: not screen.query(Exchange))
        assert screen.turns == []


async def test_escape_stops_the_answer_and_cancels_its_job(dashboard: Opened) -> None:
    async with dashboard("chat") as (app, pilot):
        turn = await asked(app, pilot, "a long story", 900)
        await shown(pilot, lambda: turn.tokens > 2)
        await pilot.press("escape")
        await shown(pilot, lambda: turn.stage == "stopped")
        assert turn.job is not None
        id = turn.job

        async def state() -> str:
            return (await app.mesh.job(id)).state

        async with asyncio.timeout(PATIENT_S):
            while await state() != "cancelled":
                await pilot.pause(0.05)
        assert "stopped" in words(app, chat_of(app).query_one(Exchange), ".facts")


async def test_what_goes_wrong_is_said_in_the_flow_and_the_prompt_comes_back(dashboard: Opened) -> None:
    async with dashboard("chat") as (app, pilot):
        screen = chat_of(app)
        screen.query_one("#deadline", Input).value = "0.05"
        turn = await asked(app, pilot, "too late", 900)
        await shown(pilot, lambda: turn.stage == "failed")
        exchange = screen.query_one(Exchange)
        assert turn.error
        assert words(app, exchange, ".facts") == f"✗ {turn.error}"
        assert screen.query_one(Composer).text == "too late"

        screen.query_one("#deadline", Input).value = "soon"
        await pilot.press("enter")
        await shown(pilot, lambda: any("Deadline" in str(toast.message) for toast in app._notifications))
        assert len(screen.turns) == 1
        assert screen.query_one(Composer).text == "too late"


async def test_lines_are_made_with_ctrl_j_and_what_was_asked_comes_back_with_up(dashboard: Opened) -> None:
    async with dashboard("chat") as (app, pilot):
        screen = chat_of(app)
        composer = screen.query_one(Composer)
        await typed(pilot, "one")
        await pilot.press("ctrl+j")
        await typed(pilot, "two")
        assert composer.text == "one\ntwo"
        screen.query_one("#deadline", Input).value = "0.05"
        await pilot.press("enter")
        await shown(pilot, lambda: screen.turns and screen.turns[0].stage == "failed")
        composer.text = ""
        await pilot.press("up")
        assert composer.text == "one\ntwo"
        await pilot.press("down")
        assert composer.text == ""


# -- pictures ----------------------------------------------------------------------------------------------------------


def studio_of(app: Dashboard) -> StudioScreen:
    assert isinstance(app.screen, StudioScreen)
    return app.screen


def line(app: Dashboard) -> str:
    return str(studio_of(app).query_one("#line", Static).render())


async def drawn(app: Dashboard, pilot: Pilot[None], prompt: str) -> str:
    """The id of the picture that is then on view."""
    screen = studio_of(app)
    before = screen.shown
    screen.query_one(Composer).text = prompt
    await pilot.press("enter")
    await shown(pilot, lambda: screen.shown is not before and not screen.busy)
    assert screen.shown is not None
    return screen.shown.artifact.id


async def test_a_picture_is_drawn_shown_used_again_drawn_on_from_and_saved(dashboard: Opened, tmp_path: Path) -> None:
    async with dashboard("studio") as (app, pilot):
        screen = studio_of(app)
        screen.query_one("#seed", Input).value = "7"
        first = await drawn(app, pilot, "red apple")
        view = screen.query_one(PictureView)
        assert view.image is not None
        assert view.image.size == (64, 64)
        assert "emoji · 64x64" in line(app)
        assert "seed 7" in line(app)
        assert [thumb.drawn.artifact.id for thumb in screen.query(Thumb)] == [first]

        screen.query_one("#seed", Input).value = ""
        await pilot.press("ctrl+r")
        assert screen.query_one("#seed", Input).value == "7"
        assert screen.query_one("#size", Input).value == "64x64"
        assert screen.query_one(Composer).text == "red apple"

        screen.query_one(Composer).text = ""
        await pilot.press("ctrl+g")
        assert screen.query_one("#from", Checkbox).value
        second = await drawn(app, pilot, "green apple")
        assert (await app.mesh.job(second.split(".")[0])).capability == "image.edit"
        assert [thumb.drawn.artifact.id for thumb in screen.query(Thumb)] == [second, first]

        screen.query(Thumb).last().focus()
        await pilot.press("enter")
        await shown(pilot, lambda: screen.shown is not None and screen.shown.artifact.id == first)
        assert line(app).endswith("seed 7 · red apple")

        await pilot.press("ctrl+s")
        await shown(pilot, lambda: app.screen.query(Input) and app.screen is not screen)
        assert app.screen.query_one(Input).value == "red-apple-7.png"
        file = tmp_path / "apple.png"
        app.screen.query_one(Input).value = str(file)
        await pilot.press("enter")
        await shown(pilot, file.exists)
        assert file.read_bytes().startswith(b"\x89PNG")


async def test_another_dashboard_finds_the_pictures_and_escape_stops_a_drawing(dashboard: Opened) -> None:
    async with dashboard("studio", size=(80, 24)) as (app, pilot):
        screen = studio_of(app)
        await shown(pilot, lambda: len(screen.query(Thumb)) == 2)
        screen.query_one("#steps", Input).value = "1000"
        await typed(pilot, "star")
        await pilot.press("enter")
        await shown(pilot, lambda: screen.sketch is not None and screen.sketch.step > 2)
        assert "step" in line(app)
        await shown(pilot, lambda: screen.query_one(PictureView).image is not None)
        await pilot.press("escape")
        await shown(pilot, lambda: not screen.busy)
        assert line(app) == "stopped"


# -- history -----------------------------------------------------------------------------------------------------------


def history_of(app: Dashboard) -> HistoryScreen:
    assert isinstance(app.screen, HistoryScreen)
    return app.screen


async def test_plots_show_what_the_nodes_did_and_ask_only_while_they_are_looked_at(
    dashboard: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "EVERY_S", 0.1)
    monkeypatch.setattr(history, "SHARE", 1.0)
    async with dashboard("history") as (app, pilot):
        screen = history_of(app)
        speed = screen.query_one("#speed", Plot)
        await app.mesh.chat("hello", max_tokens=8, policy=Policy(prefer=(FIRST_CHOICE,))).reply()
        await shown(pilot, lambda: speed.lines)
        assert {line.name for line in speed.lines} <= set(NODES)
        assert all(value > 0 for line in speed.lines for _, value in line.points)
        asked = screen.asked
        await shown(pilot, lambda: screen.asked > asked + 2)

        await pilot.press("8")
        await shown(pilot, lambda: app.screen is not screen)
        for _ in range(2):  # what was on its way
            await app.mesh.sql("SELECT 1", mesh=True)
        asked = screen.asked
        for _ in range(3):
            await app.mesh.sql("SELECT 1", mesh=True)
        assert screen.asked == asked
        await pilot.press("7")
        await shown(pilot, lambda: screen.asked > asked)

        await pilot.press("t")
        assert screen.range.name == "24 h"
        await pilot.press("m")
        report = screen.query_one("#report", DataTable)
        await shown(pilot, lambda: report.row_count > 0)


async def test_the_sql_box_answers_says_what_is_wrong_and_saves(dashboard: Opened, tmp_path: Path) -> None:
    async with dashboard("history") as (app, pilot):
        screen = history_of(app)
        await pilot.press("s")
        editor, table = screen.query_one(SqlEditor), screen.query_one("#answer", DataTable)
        await shown(pilot, lambda: editor.has_focus)

        def remark() -> str:
            return str(screen.query_one("#remark", Static).render())

        editor.text = "SELECT 1 AS one\n-- over\nSELECT count(*) AS nodes, sum(one) AS s FROM answers"
        await pilot.press("ctrl+r")
        await shown(pilot, lambda: remark().startswith("1 row in"))
        assert [str(cell) for cell in table.get_row_at(0)] == ["3", "3"]

        editor.text = "SELEKT 1"
        await pilot.press("ctrl+r")
        await shown(pilot, lambda: remark().startswith("✗"))
        assert "SELEKT" in remark()

        editor.text = "SELECT x FROM range(3000) t(x)"
        await pilot.press("ctrl+r")
        await shown(pilot, lambda: table.row_count == 1000)
        assert "there are more" in remark()
        await pilot.press("ctrl+s")
        await shown(pilot, lambda: app.screen is not screen)
        file = tmp_path / "rows.csv"
        app.screen.query_one(Input).value = str(file)
        await pilot.press("enter")
        await shown(pilot, file.exists)
        await shown(pilot, lambda: len(file.read_text().splitlines()) == 3001)

        screen.query_one("#examples", Select).value = 0
        await shown(pilot, lambda: "-- over" in editor.text)
        assert screen.query_one("#everywhere", Checkbox).value


# -- handover ----------------------------------------------------------------------------------------------------------


async def test_an_answer_goes_on_visibly_when_its_node_is_killed(dashboard: Opened, nodes: Fleet) -> None:
    async with dashboard("chat") as (app, pilot):
        screen = chat_of(app)
        turn = await asked(app, pilot, "Write a very long story about a lighthouse.", 200)
        await shown(pilot, lambda: turn.tokens > 2)
        assert turn.node == FIRST_CHOICE
        had = turn.text
        next(node for node in nodes.nodes if node.name == FIRST_CHOICE).kill()
        await shown(pilot, lambda: turn.stage == "done")

        assert turn.node != FIRST_CHOICE
        assert turn.text.startswith(had)
        exchange = screen.query_one(Exchange)
        (note,) = turn.happened
        assert note.startswith(f"{FIRST_CHOICE} was lost; {turn.node} goes on after ")
        assert words(app, exchange, ".happened") == f"⇄ {note}"
        await shown(pilot, lambda: exchange.query_one(Markdown).source == turn.text)
