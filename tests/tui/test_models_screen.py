"""The Models screen: who has what, and what its keys do on the machine that is marked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Select, Static

from outbid_contracts.files import PullEvent
from outbid_tui.app import Dashboard
from outbid_tui.looks import plain
from outbid_tui.models import entries, rows
from outbid_tui.models.entries import Group, One, Pull
from outbid_tui.models.pulling import PullForm
from outbid_tui.screens.models import ModelsScreen
from outbid_tui.widgets.dialogs import Sure
from outbid_tui.widgets.table import LiveTable
from tests.fleet import TEST_CAPABILITY, Fleet, fleet
from tests.pulling import gguf
from tests.tui.conftest import NODES, Opened, shown
from tests.tui.made_up import GAMING, LAPTOP, PI, RENTED, Still, made_up

pytestmark = pytest.mark.asyncio

SETTINGS = (*TEST_CAPABILITY, "--set", "test.models=alpha,beta", "--set", "test.memory_mib=10")
COLUMN = {column.name: at for at, column in enumerate(rows.COLUMNS)}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """With models that do nothing."""
    with fleet(tmp_path_factory.mktemp("models")) as nodes:
        asyncio.run(nodes.start(*NODES, flags=SETTINGS))
        yield nodes


def told(app: Dashboard, key: str, column: str) -> str:
    screen = cast(ModelsScreen, app.screen)
    entry = screen._entries.get(key)
    return plain(rows.cells(entry)[COLUMN[column]]) if entry else ""


def listed(app: Dashboard) -> list[str]:
    return [key for key, _ in app.screen.query_one(LiveTable).rows]


async def mark(app: Dashboard, pilot: Pilot[None], model: str, name: str) -> str:
    """Put the cursor on that model on that machine; returns its key."""
    (node,) = [id for id, machine in app.state.machines.items() if machine.presence.name == name]
    key = f"one test {model} {node}"
    await shown(pilot, lambda: key in listed(app))
    app.screen.query_one(LiveTable).choose(key)
    await pilot.pause()
    return key


# -- who has what, without a mesh ------------------------------------------------------------------------------------


async def test_each_model_is_one_group_with_everybody_who_has_it_those_in_memory_first() -> None:
    found = entries.listed(made_up(), {}, frozenset())
    groups = [entry for entry in found if isinstance(entry, Group)]
    assert [group.view.model for group in groups] == ["emoji-diffusion", "llama-3.1-70b-instruct-q4", "smollm2-135m"]
    (small,) = [group for group in groups if group.view.model == "smollm2-135m"]
    assert [one.view.name for one in small.ones] == ["gaming-pc", "pi", "rented-h100", "laptop"]
    assert plain(rows.who(small.ones)) == "● gaming-pc  ● pi  ● rented-h100  ○ laptop"
    ones = {entry.view.node: entry for entry in found if isinstance(entry, One) and entry.view.model == "smollm2-135m"}
    assert ones.keys() == {PI, LAPTOP, GAMING, RENTED}
    assert "pinned" in plain(rows.cells(ones[PI])[COLUMN["marks"]])
    assert "pinned" not in plain(rows.cells(ones[GAMING])[COLUMN["marks"]])


async def test_a_blocked_model_says_why() -> None:
    found = entries.listed(made_up(), {}, frozenset(), "70b blocked")
    (one,) = [entry for entry in found if isinstance(entry, One)]
    assert plain(rows.cells(one)[COLUMN["state"]]) == "✗ blocked"
    assert "needs 41 GiB" in plain(rows.cells(one)[COLUMN["note"]])


async def test_pulls_are_on_top_by_heartbeats_or_by_what_their_own_events_say() -> None:
    state = made_up()
    first = entries.listed(state, {}, frozenset())[0]
    assert isinstance(first, Pull)
    assert plain(rows.cells(first)[COLUMN["state"]]) == "↓ 42 %"
    source = "hf:Qwen/Qwen2.5-7B"
    event = PullEvent(
        state="downloading",
        source=source,
        name="qwen2.5-7b",
        size=1000,
        done=600,
        bytes_s=12.5e6,
        sources=("pi", "internet"),
    )
    mine, *rest = entries.listed(state, {(LAPTOP, source): event}, frozenset())
    assert not any(isinstance(entry, Pull) for entry in rest)
    assert plain(rows.cells(mine)[COLUMN["state"]]) == "↓ 60 %"
    assert plain(rows.cells(mine)[COLUMN["note"]]) == "12.5 MB/s from pi, internet"


async def test_enter_folds_and_unfolds_and_words_find_machines() -> None:
    app = Still("models")
    async with app.run_test(size=(120, 40)) as pilot:
        await shown(pilot, lambda: len(listed(app)) > 5)
        everything = listed(app)
        app.screen.query_one(LiveTable).choose("model llm smollm2-135m")
        await pilot.press("enter")
        assert len(listed(app)) == len(everything) - 4
        await pilot.press("enter")
        assert listed(app) == everything
        await pilot.press("slash", *"rented warm", "enter")
        await shown(pilot, lambda: sum(key.startswith("one") for key in listed(app)) == 2)
        await pilot.press("escape")
        await shown(pilot, lambda: listed(app) == everything)


# -- a real mesh -----------------------------------------------------------------------------------------------------


async def test_pin_loads_a_model_there_and_evict_takes_it_out_once_it_is_not_pinned(dashboard: Opened) -> None:
    async with dashboard("models") as (app, pilot):
        key = await mark(app, pilot, "beta", "laptop")
        assert told(app, key, "state") == "○ cold"
        await pilot.press("n")
        await shown(pilot, lambda: "pinned" in told(app, key, "marks"))
        await shown(pilot, lambda: told(app, key, "state") == "● warm")
        other = await mark(app, pilot, "beta", "pi")
        assert "pinned" not in told(app, other, "marks")
        await mark(app, pilot, "beta", "laptop")
        await pilot.press("e")
        await shown(pilot, lambda: any("is pinned here" in note.message for note in app._notifications))
        assert told(app, key, "state") == "● warm"
        await pilot.press("n")
        await shown(pilot, lambda: "pinned" not in told(app, key, "marks"))
        await pilot.press("e")
        await shown(pilot, lambda: told(app, key, "state") == "○ cold")


async def test_a_pull_goes_to_the_machine_of_the_form_and_delete_asks_first(dashboard: Opened, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(gguf(3 << 20))
    async with dashboard("models") as (app, pilot):
        (laptop,) = [id for id, machine in app.state.machines.items() if machine.presence.name == "laptop"]
        await pilot.press("p")
        await shown(pilot, lambda: isinstance(app.screen, PullForm))
        app.screen.query_one("#node", Select).value = laptop
        app.screen.query_one("#source", Input).value = f"file:{file}"
        await pilot.press("enter")
        await shown(pilot, lambda: any("tiny" in key and laptop in key for key in listed(app)))
        await shown(pilot, lambda: not cast(ModelsScreen, app.screen).pulls)
        await shown(pilot, lambda: any("tiny" in key and laptop in key for key in listed(app)))
        (key,) = [key for key in listed(app) if "tiny" in key and laptop in key]
        app.screen.query_one(LiveTable).choose(key)
        await pilot.press("d")
        await shown(pilot, lambda: isinstance(app.screen, Sure))
        assert "tiny on laptop" in str(app.screen.query_one(".dialog-text", Static).content)
        await pilot.press("y")
        await shown(pilot, lambda: isinstance(app.screen, ModelsScreen) and key not in listed(app))
