"""Something to read above a screen: it scrolls, and escape closes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ClassVar

from rich.console import Group, RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Static

from outbid import OutbidError

Make = Callable[[], Awaitable[RenderableType]]


class Sheet(ModalScreen[None]):
    """`make` is awaited once it is open: meanwhile, and where the mesh says no, it says so."""

    DEFAULT_CSS = """
    Sheet { align: center middle; }
    Sheet > VerticalScroll {
        width: 160;
        max-width: 96%;
        height: auto;
        max-height: 90%;
        padding: 1 2;
        background: $surface;
        border: round $primary;
        border-title-color: $text-primary;
        border-title-style: bold;
        scrollbar-size-vertical: 1;
    }
    Sheet Static { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", "Close"),
        Binding("down,j", "scroll(1)", "Down", show=False),
        Binding("up,k", "scroll(-1)", "Up", show=False),
    ]

    def __init__(self, title: str, make: Make, id: str | None = None) -> None:
        super().__init__(id=id)
        self._title = title
        self._make = make

    def compose(self) -> ComposeResult:
        with VerticalScroll() as scroll:
            scroll.border_title = self._title
            yield Static("asking the mesh …", id="sheet", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()
        self.run_worker(self._fill(), exit_on_error=False)

    async def _fill(self) -> None:
        try:
            shown = await self._make()
        except OutbidError as error:
            shown = Text(error.message, style="red")
        self.query_one("#sheet", Static).update(shown)

    def action_scroll(self, by: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=by, animate=False)


def read(parts: Iterable[Any]) -> Group:
    """What the command line prints, as one renderable: its strings are markup of rich."""
    return Group(*(Text.from_markup(part) if isinstance(part, str) else part for part in parts))
