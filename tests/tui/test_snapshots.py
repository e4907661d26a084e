"""How it looks, as SVG: after a wanted change `pytest tests/tui --snapshot-update`, and look at what came out.

A mesh that nobody has, at a time that stands still.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from textual.pilot import Pilot

from outbid_tui.app import Dashboard
from tests.tui.conftest import shown
from tests.tui.imagined import NOON_MS, ImaginedMesh

Compare = Callable[..., bool]


@pytest.fixture(autouse=True)
def _noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbid_tui.looks.time.localtime", time.gmtime)
    monkeypatch.setattr("outbid_tui.looks.time.time", lambda: NOON_MS / 1000)


async def settled(pilot: Pilot[None]) -> None:
    app = pilot.app
    assert isinstance(app, Dashboard)
    assert isinstance(app.mesh, ImaginedMesh)
    await app.mesh.told.wait()
    await shown(pilot, lambda: app.state.connected and len(app.state.models.models) and not app._dirty)
    await pilot.pause()


@pytest.mark.parametrize(
    ("screen", "size"),
    [("mesh", (80, 24)), ("mesh", (120, 40)), ("logs", (100, 20))],
    ids=["mesh-rows", "mesh-cards", "logs"],
)
def test_it_looks_as_it_did(snap_compare: Compare, screen: str, size: tuple[int, int]) -> None:
    app = Dashboard(ImaginedMesh(), start_on=screen)
    app.state.clock = lambda: 1000.0
    assert snap_compare(app, terminal_size=size, run_before=settled)
