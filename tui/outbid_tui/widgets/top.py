"""The lines above every screen: what goes on in the mesh, the tabs, and the connection where it is lost."""

from __future__ import annotations

import time

from textual.content import Content
from textual.widgets import Static

from outbid_tui.looks import clock, watts
from outbid_tui.state import MeshState


class TopLine(Static):
    """Name, node, machines, jobs, watts and the clock in one line."""

    DEFAULT_CSS = """
    TopLine { height: 1; background: $panel; color: $foreground; padding: 0 1; }
    """

    def __init__(self) -> None:
        super().__init__("")
        self._shown: tuple[str, ...] = ()

    def on_mount(self) -> None:
        self.set_interval(1, self._tick)

    def show(self, state: MeshState) -> None:
        counts = state.counts()
        parts = (
            state.here_name(),
            f"{counts.up}/{counts.up + counts.away} up",
            f"▶ {counts.running}",
            f"◷ {counts.waiting}",
            watts(state.watts_now()),
        )
        if parts != self._shown:
            self._shown = parts
            self._tick()

    def _tick(self) -> None:
        if not self.screen.is_current or not self._shown:
            return
        here, machines, running, waiting, power = self._shown
        left = Content.assemble(("outbid", "bold $text-primary"), "  ", (here, "bold"), "  ", machines)
        jobs = Content.assemble("  ", (running, "$text-primary"), "  ", (waiting, "$text-warning"), "  ", power)
        now = clock(round(1000 * time.time()))
        body = left + jobs
        room = max(1, self.size.width - 2 - body.cell_length - len(now))
        self.update(body + Content(" " * room + now), layout=False)


class TabLine(Static):
    """The screens by number; a click shows one."""

    DEFAULT_CSS = """
    TabLine {
        height: 1;
        background: $boost;
        link-style: none;
        link-color: $foreground;
        link-background-hover: $primary 30%;
        link-color-hover: $foreground;
        link-style-hover: none;
    }
    """

    def __init__(self, active: str) -> None:
        super().__init__("")
        self._active = active

    def on_mount(self) -> None:
        from outbid_tui.screens import SCREENS

        pieces = []
        for number, (name, screen) in enumerate(SCREENS, 1):
            here = self._active == screen.NAME
            style = "bold $block-cursor-foreground on $block-cursor-background" if here else "$foreground"
            label = Content.assemble((f" {number} ", f"{style} dim" if not here else style), (f"{screen.NAME} ", style))
            pieces.append(label.stylize(f"@click=app.show('{name}')") if not here else label)
        self.update(Content("").join(pieces))


class Banner(Static):
    """Seen while nothing is heard from the mesh."""

    DEFAULT_CSS = """
    Banner { display: none; height: auto; max-height: 3; padding: 0 1; background: $error; color: $text; }
    Banner.lost { display: block; }
    Banner.opening { display: block; background: $panel; text-style: none; }
    """

    def show(self, state: MeshState) -> None:
        self.set_class(not state.connected and bool(state.trouble), "lost")
        self.set_class(not state.connected and not state.trouble, "opening")
        if state.connected:
            return
        self.update(f"▲ connection lost: {state.trouble}; trying again" if state.trouble else "connecting …")
