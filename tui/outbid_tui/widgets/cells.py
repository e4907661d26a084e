"""What paints cells of text with looks, line by line, in the colours of the theme."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.scroll_view import ScrollView
from textual.strip import Strip

from outbid_tui.looks import Cell


class CellView(ScrollView, can_focus=True):
    """A scrolled view whose lines are made of cells."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "look--heading",
        "look--cursor",
        "look--dim",
        "look--good",
        "look--warn",
        "look--bad",
        "look--accent",
        "look--bold",
    }
    DEFAULT_CSS = """
    CellView {
        height: 1fr;
        overflow-x: hidden;
        background: $surface;
        color: $foreground;
        scrollbar-size-vertical: 1;
        scrollbar-gutter: stable;
        scrollbar-color: $primary 40%;
        scrollbar-background: $surface;
    }
    CellView > .look--heading { color: $text-muted; background: $panel; text-style: bold; }
    CellView > .look--cursor { background: $primary 22%; }
    CellView:focus > .look--cursor { background: $primary 40%; }
    CellView > .look--dim { color: $text-muted; }
    CellView > .look--good { color: $text-success; }
    CellView > .look--warn { color: $text-warning; }
    CellView > .look--bad { color: $text-error; text-style: bold; }
    CellView > .look--accent { color: $text-primary; }
    CellView > .look--bold { text-style: bold; }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._styles: dict[tuple[str, bool], Style] = {}
        self._ground: Style | None = None

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._styles = {}
        self._ground = None

    @property
    def ground(self) -> Style:
        """What the lines stand on. Textual works it out anew each time it is asked, which took most of a repaint."""
        if self._ground is None:
            self._ground = self.rich_style
        return self._ground

    @property
    def room(self) -> int:
        """Characters in a line: the column of the scroll bar is kept free always, so that they do not change."""
        return max(1, self.size.width - 1)

    def look(self, name: str) -> Style:
        """Only what the look sets. Heading and cursor have a ground of their own, the others stand on any."""
        found = self._styles.get((name, self.has_focus))
        if found is None:
            whole = self.get_component_rich_style(f"look--{name}")
            ground = name in ("cursor", "heading")
            found = Style(
                color=None if name in ("bold", "cursor") else whole.color,
                bgcolor=whole.bgcolor if ground else None,
                bold=whole.bold or None,
            )
            self._styles[name, self.has_focus] = found
        return found

    def segments(self, cell: Cell, width: int, base: Style, *, right: bool = False) -> list[Segment]:
        """Exactly `width` characters."""
        if isinstance(cell, str):
            return [Segment(fitted(cell, width, right), base)]
        segments: list[Segment] = []
        left = width
        if right and (blank := width - sum(cell_len(text) for text, _ in cell)) > 0:
            segments.append(Segment(" " * blank, base))
            left -= blank
        for text, look in cell:
            if left <= 0:
                break
            text = printable(text)
            shown = text if cell_len(text) <= left else fitted(text, left, False)
            segments.append(Segment(shown, base + self.look(look) if look else base))
            left -= cell_len(shown)
        if left > 0:
            segments.append(Segment(" " * left, base))
        return segments

    def blank(self, text: str = "") -> Strip:
        width = self.room
        return Strip([Segment(fitted(text, width, False), self.ground + self.look("dim"))], width)


def printable(text: str) -> str:
    """What comes over the network must not command the terminal: control characters become "?"."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else " " if one in "\n\t" else "?" for one in text)


@lru_cache(4096)
def fitted(text: str, width: int, right: bool) -> str:
    """Exactly `width` characters wide, with an ellipsis where something is cut off."""
    text = printable(text)
    wide = len(text) if text.isascii() else cell_len(text)
    if wide > width:
        return set_cell_size(text, width - 1) + "…" if width > 0 else ""
    return " " * (width - wide) + text if right else text + " " * (width - wide)
