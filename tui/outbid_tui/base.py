"""What every screen of the dashboard is made from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.events import ScreenResume
from textual.screen import Screen
from textual.widgets import Footer

from outbid_tui.state import Kind, MeshState
from outbid_tui.widgets.top import Banner, TabLine, TopLine

if TYPE_CHECKING:
    from outbid_tui.app import Dashboard
    from outbid_tui.commands import Command

LINE: frozenset[Kind] = frozenset({"link", "nodes", "jobs"})
"""What the line at the top shows."""


class MeshScreen(Screen[None]):
    """A view of the state, made once in the life of the dashboard. `show_state` is called at most PAINTS_PER_S times a
    second while the screen is on view, and once with every kind when it comes on view; between these calls nothing is
    painted for the mesh's sake.
    """

    NAME: ClassVar[str]
    """On its tab and in the palette."""
    HELP: ClassVar[str]
    """Markdown that the help shows above the screen's keys."""
    SHOWS: ClassVar[frozenset[Kind]]
    """Changes of other kinds do not concern it."""

    @property
    def dashboard(self) -> Dashboard:
        return cast("Dashboard", self.app)

    @property
    def state(self) -> MeshState:
        return self.dashboard.state

    def compose(self) -> ComposeResult:
        yield TopLine()
        yield TabLine(type(self).NAME)
        yield Banner()
        yield from self.body()
        yield Footer(compact=True)

    def body(self) -> ComposeResult:
        """The screen's own widgets, between the lines that all screens share."""
        raise NotImplementedError

    def show_state(self, changed: frozenset[Kind]) -> None:
        """Cheap: compare with what is shown, and touch what differs."""
        raise NotImplementedError

    def commands(self) -> Iterable[Command]:
        """What the palette offers beside the screens and operations while this screen is on view."""
        return ()

    @property
    def whole(self) -> bool:
        """Its widgets are there: neither is it still being made nor taken down."""
        return self.is_mounted and {TopLine, TabLine, Banner, Footer} <= {type(child) for child in self.children}

    def paint(self, changed: frozenset[Kind]) -> None:
        if changed & LINE:
            self.query_one(TopLine).show(self.state)
            self.query_one(Banner).show(self.state)
        if wanted := changed & self.SHOWS:
            self.show_state(wanted)

    def _on_screen_resume(self, event: ScreenResume) -> None:
        self.dashboard.comes_on_view()
