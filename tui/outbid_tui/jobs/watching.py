"""One job as it goes on: its events on the right, its text or its steps on the left."""

from __future__ import annotations

from contextlib import aclosing
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Footer, Static

from outbid import Mesh, OutbidError
from outbid_tui.jobs.story import Story
from outbid_tui.widgets.gauge import gauge
from outbid_tui.widgets.toned import lines, toned

PAINTS_PER_S = 10
GAUGE = 40
NARROW = 100
"""Below so many characters the two stand one above the other."""


class WatchView(ModalScreen[None]):
    """A durable job from its beginning to its end. Closing it leaves the job alone."""

    DEFAULT_CSS = """
    WatchView { align: center middle; background: $background; }
    WatchView > #watched { height: 1; background: $panel; padding: 0 1; text-style: bold; }
    WatchView > #steps { height: 1; padding: 0 1; }
    WatchView VerticalScroll { border: round $foreground 25%; padding: 0 1; scrollbar-size-vertical: 1; }
    WatchView VerticalScroll:focus { border: round $primary; }
    WatchView #said { width: 3fr; }
    WatchView #course { width: 2fr; }
    WatchView.-narrow Horizontal { layout: vertical; }
    WatchView.-narrow #said, WatchView.-narrow #course { width: 1fr; height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,w", "dismiss", "Close")]

    def __init__(self, mesh: Mesh, job: str, title: str) -> None:
        super().__init__()
        self.story = Story()
        self._mesh = mesh
        self._job = job
        self._title = title
        self._dirty = True

    def compose(self) -> ComposeResult:
        yield Static(self._title, id="watched", markup=False)
        yield Static("", id="steps")
        with Horizontal():
            with VerticalScroll(id="said") as said:
                said.border_title = "what it says"
                yield Static("", id="text", markup=False)
            with VerticalScroll(id="course") as course:
                course.border_title = "what happened"
                yield Static("", id="lines", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#said").focus()
        self.set_interval(1 / PAINTS_PER_S, self._paint)
        self.run_worker(self._follow(), exit_on_error=False)

    def on_resize(self) -> None:
        self.set_class(self.size.width < NARROW, "-narrow")

    async def _follow(self) -> None:
        try:
            async with aclosing(self._mesh.attach(self._job).watch()) as events:
                async for event in events:
                    self.story.take(event)
                    self._dirty = True
        except OutbidError as error:
            self.story.lines.append((error.message, "bad"))
            self._dirty = True

    def _paint(self) -> None:
        if not self._dirty:
            return
        self._dirty = False
        story = self.story
        silent = "no text yet" if not story.ended else ""
        self._update("#said", toned(story.text or ((silent, "dim"),)))
        self._update("#course", lines([(line,) for line in story.lines]))
        self.query_one("#steps", Static).update(self._steps())

    def _update(self, where: str, content: Content) -> None:
        """Whoever reads at the end stays at the end."""
        scroll = self.query_one(where, VerticalScroll)
        at_end = scroll.max_scroll_y - scroll.scroll_y < 1.5
        scroll.query_one(Static).update(content)
        if at_end:
            scroll.scroll_end(animate=False)

    def _steps(self) -> Content:
        story = self.story
        if not story.steps:
            return toned(story.told)
        return toned(
            (*gauge(story.step / story.steps, GAUGE), (f"  step {story.step} of {story.steps}  {story.told}", ""))
        )
