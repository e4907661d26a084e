"""A mesh of three nodes for each file of tests, and the dashboard that is connected to the first of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from outbid import Mesh
from outbid_tui.app import Dashboard
from tests.fleet import Fleet, fleet

NODES = ("gaming-pc", "laptop", "pi")
WIDE = (120, 40)

Opened = Callable[..., AbstractAsyncContextManager[tuple[Dashboard, Pilot[None]]]]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("tui")) as nodes:
        asyncio.run(nodes.start(*NODES))
        yield nodes


@pytest.fixture
def dashboard(nodes: Fleet) -> Opened:
    """`async with dashboard("jobs") as (app, pilot):` on that screen, once every node is on view."""

    @asynccontextmanager
    async def opened(
        screen: str = "mesh", size: tuple[int, int] = WIDE
    ) -> AsyncIterator[tuple[Dashboard, Pilot[None]]]:
        app = Dashboard(Mesh(state=nodes.nodes[0].state), start_on=screen)
        async with app.run_test(size=size) as pilot:
            await shown(pilot, lambda: app.state.connected and len(app.state.machines) == len(NODES))
            yield app, pilot

    return opened


async def shown(pilot: Pilot[None], true: Callable[[], object], within_s: float = 30) -> None:
    """Until `true()`, looked at after each round of messages. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not true():
            await pilot.pause(0.02)


def text_of(widget: Static) -> str:
    """What a line of text shows now."""
    return str(widget.render())


def toasts(app: Dashboard) -> list[str]:
    """What was said in the corner and is still there."""
    return [notification.message for notification in app._notifications]
