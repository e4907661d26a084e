"""`python -m outbid_bench.tui_timed WHAT TIMES [arguments of outbid tui]`: an app that writes down when it paints.

WHAT is a screen of the dashboard, or `bare`: a Textual table of the same number of rows and nothing else. Each line of
the file TIMES is `key` or `paint` and the time (CLOCK_MONOTONIC, seconds) when the app had taken in a key, or had given
its changes to the terminal.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, TextIO

from textual.app import App, ComposeResult
from textual.events import Event, Key
from textual.screen import Screen
from textual.widgets import DataTable, Footer

from outbid import Mesh
from outbid_tui import app as dashboard
from outbid_tui.app import Dashboard
from outbid_tui.memory import settle

ROWS, COLUMNS = 1000, 8


class Timed(App[None]):
    """Mixed in before an app."""

    times: TextIO

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._keys: deque[Event] = deque(maxlen=20)

    async def on_event(self, event: Event) -> None:
        """A key comes by twice: from the terminal, and, maybe after the next one, bubbling up from where it was sent
        on to.
        """
        first = isinstance(event, Key) and not any(event is one for one in self._keys)
        await super().on_event(event)
        if first:
            self._keys.append(event)
            self._note("key")

    def _display(self, screen: Screen[Any], renderable: Any) -> None:
        super()._display(screen, renderable)
        self._note("paint")

    def _note(self, what: str) -> None:
        self.times.write(f"{what} {time.monotonic():.6f}\n")
        self.times.flush()


class TimedDashboard(Timed, Dashboard):
    CSS_PATH = str(Path(dashboard.__file__).with_name("dashboard.tcss"))


class Bare(Timed):
    def compose(self) -> ComposeResult:
        yield DataTable[str](cursor_type="row")
        yield Footer()

    def on_mount(self) -> None:
        table = self.query_one(DataTable)
        table.add_columns(*(f"column {n}" for n in range(COLUMNS)))
        table.add_rows([f"row {row} of {n}" for n in range(COLUMNS)] for row in range(ROWS))


def main(what: str, times: str, *arguments: str) -> None:
    app: Timed = Bare() if what == "bare" else TimedDashboard(Mesh(state=arguments[0]), start_on=what)
    with Path(times).open("w") as app.times:
        settle()
        app.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
