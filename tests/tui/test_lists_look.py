"""How the lists look, as pictures: `pytest --snapshot-update` after a change that was meant."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from textual.pilot import Pilot

from outbid_tui.widgets.top import TopLine
from tests.tui.made_up import NOW_S, Still

SnapCompare = Callable[..., bool]


@pytest.fixture(autouse=True)
def _frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW_S)
    monkeypatch.setattr(time, "strftime", lambda *_: "12:34:56")


@pytest.mark.parametrize(
    ("screen", "press", "size"),
    [
        ("jobs", ["down"], (120, 40)),
        ("jobs", ["f", "f"], (80, 24)),
        ("auction", ["down", "down"], (120, 40)),
        ("auction", ["down"], (200, 60)),
        ("models", ["down", "down"], (120, 40)),
    ],
)
def test_a_list_looks_as_it_did(
    snap_compare: SnapCompare, screen: str, press: list[str], size: tuple[int, int]
) -> None:
    app = Still(screen)

    async def settled(pilot: Pilot[None]) -> None:
        """The line at the top has a clock, and is not a matter of these screens."""
        app.screen.query_one(TopLine).display = False
        await pilot.press(*press)
        await pilot.pause(0.5)

    assert snap_compare(app, run_before=settled, terminal_size=size)
