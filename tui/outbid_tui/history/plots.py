"""The four plots, kept up to date while somebody looks."""

from __future__ import annotations

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.strip import Strip
from textual.widget import Widget

from outbid_tui.history import braille
from outbid_tui.history.questions import Answer, Range


class Plot(Widget, can_focus=True):
    """One plot. It is drawn anew where its data or its size changed."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter,z", "zoom", "Zoom")]

    DEFAULT_CSS = """
    Plot { border: round $surface-lighten-2; border-title-color: $foreground; padding: 0 1; color: $text-muted; }
    Plot:focus { border: round $accent; }
    """

    def __init__(self, title: str, id: str, *, ratio: bool = False) -> None:
        super().__init__(id=id)
        self.border_title = title
        self._ratio = ratio
        self._answer = Answer()
        self._frame = braille.Frame(0, 1, 0, 1, 1)
        self._strips: list[Strip] = []
        self._said = "…"

    @property
    def lines(self) -> tuple[braille.Line, ...]:
        return tuple(self._answer.lines)

    def show(self, answer: Answer, range: Range, now_s: float) -> None:
        self._said = f"nothing in the last {range.name}"
        self._answer = answer
        self._frame = braille.framed(answer.lines, now_s - range.span_s, now_s, 2.5 * range.bucket_s, ratio=self._ratio)
        self.border_subtitle = f"and {answer.more} machines more" if answer.more else ""
        self._strips = []
        self.refresh()

    def on_resize(self) -> None:
        self._strips = []

    def action_zoom(self) -> None:
        if self.is_maximized:
            self.screen.minimize()
        else:
            self.screen.maximize(self)

    def render(self) -> Content:
        """For those who ask for the text; the screen is painted line by line."""
        return Content("\n".join(strip.text for strip in self._drawn()))

    def render_line(self, y: int) -> Strip:
        strips = self._drawn()
        return strips[y] if y < len(strips) else Strip.blank(self.size.width, self.rich_style)

    def _drawn(self) -> list[Strip]:
        width, height = self.size
        if not self._strips and width > 12 and height > 3:
            base = self.rich_style
            if any(line.points for line in self._answer.lines):
                rows = [braille.legend(self._answer.lines, width, self._ratio)]
                rows += braille.plot(self._answer.lines, self._frame, width, height - 1)
            else:
                rows = [[] for _ in range(height // 2)] + [[(self._said.center(width), "")]]
            self._strips = [_strip(row, base).adjust_cell_length(width, base) for row in rows]
        return self._strips


def _strip(row: list[braille.Piece], base: Style) -> Strip:
    return Strip(Segment(text, base + Style(color=colour) if colour else base) for text, colour in row)
