"""A pane of text under headings, wrapped to its width; only lines that changed are painted anew."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.segment import Segment
from textual.geometry import Size
from textual.strip import Strip

from outbid_tui.looks import Cell, Piece, plain
from outbid_tui.widgets.cells import CellView

COLUMN = 48
"""Characters from which text is read well, so that columns may stand side by side."""

GAP = 3

Section = tuple[str, Sequence[Cell]]
"""A heading, which may be empty, and the lines below it."""


class TextPane(CellView):
    DEFAULT_CSS = """
    TextPane { padding: 0 0 0 1; }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._sections: list[Section] = []
        self.lines: list[Cell] = []
        """What is shown, line by line."""

    def show(self, sections: Iterable[Section]) -> None:
        self._sections = list(sections)
        self._wrap()

    def _wrap(self) -> None:
        before, self.lines = self.lines, in_columns(self._sections, max(8, self.room), self.size.height)
        if len(before) != len(self.lines):
            self.virtual_size = Size(self.room, len(self.lines))
        for at in range(max(len(before), len(self.lines))):
            if before[at : at + 1] != self.lines[at : at + 1]:
                self.refresh_line(at)

    def on_resize(self) -> None:
        self.lines = []
        self._wrap()
        self.virtual_size = Size(self.room, len(self.lines))

    def render_line(self, y: int) -> Strip:
        at = y + self.scroll_offset.y
        if at >= len(self.lines):
            return self.blank()
        width = self.room
        segments: list[Segment] = self.segments(self.lines[at], width, self.ground)
        return Strip(segments, width)


def laid_out(sections: Iterable[Section], width: int) -> list[Cell]:
    lines: list[Cell] = []
    for heading, cells in sections:
        if heading:
            lines.extend(["", ((heading, "bold"),)] if lines else [((heading, "bold"),)])
        for cell in cells:
            lines.extend(wrapped(cell, width))
    return lines


def in_columns(sections: Sequence[Section], width: int, height: int) -> list[Cell]:
    """Side by side, in as many columns as the width has room for and the text needs."""
    most = 1 if width < 2 * COLUMN else min(3, width // COLUMN)
    for count in range(1, most + 1):
        each = (width - GAP * (count - 1)) // count
        lines = laid_out(sections, each)
        if count == most or len(lines) <= height:
            break
    if count == 1:
        return lines
    columns = _split(sections, each, count)
    tall = max(map(len, columns))
    return [
        tuple(piece for column in columns for piece in _padded(column[at] if at < len(column) else "", each))[:-1]
        for at in range(tall)
    ]


def _split(sections: Sequence[Section], width: int, count: int) -> list[list[Cell]]:
    """Whole sections in at most `count` columns, the longest as short as can be."""
    whole = len(laid_out(sections, width))
    for tall in range(max(1, whole // count), whole + 1):
        columns = _packed(sections, width, tall)
        if len(columns) <= count:
            return columns
    return [laid_out(sections, width)]


def _packed(sections: Sequence[Section], width: int, tall: int) -> list[list[Cell]]:
    columns: list[list[Section]] = [[]]
    for section in sections:
        if columns[-1] and len(laid_out([*columns[-1], section], width)) > tall:
            columns.append([])
        columns[-1].append(section)
    return [laid_out(column, width) for column in columns]


def _padded(cell: Cell, width: int) -> Sequence[Piece]:
    pieces: Sequence[Piece] = [(cell, "")] if isinstance(cell, str) else cell
    return (*pieces, (" " * (width + GAP - cell_len(plain(cell))), ""))


def wrapped(cell: Cell, width: int, hang: int = 2) -> list[Cell]:
    """Broken between words into lines of at most `width`; those after the first begin `hang` further in."""
    text = plain(cell)
    if cell_len(text) <= width:
        return [cell]
    hang = min(hang, width // 2)
    pieces: Sequence[Piece] = [(cell, "")] if isinstance(cell, str) else cell
    cuts = _cuts(text, width, hang)
    ends = [*cuts[1:], len(text)]
    return [_part(pieces, start, end, hang if start else 0) for start, end in zip(cuts, ends, strict=True)]


def _cuts(text: str, width: int, hang: int) -> list[int]:
    """Where the lines begin."""
    cuts = [0]
    used = 0
    for word in re.finditer(r"(\s*)(\S+)", text):
        wide = cell_len(word[0])
        if used and used + wide > width:
            cuts.append(word.start(2))
            used, wide = hang, cell_len(word[2])
        if used + wide <= width:
            used += wide
            continue
        for at in range(word.end() - len(word[2]), word.end()):  # a word longer than a line
            wide = cell_len(text[at])
            if used + wide > width:
                cuts.append(at)
                used = hang
            used += wide
    return cuts


def _part(pieces: Sequence[Piece], start: int, end: int, hang: int) -> Cell:
    found: list[Piece] = [(" " * hang, "")] if hang else []
    at = 0
    for text, look in pieces:
        if part := text[max(0, start - at) : max(0, end - at)]:
            found.append((part, look))
        at += len(text)
    if found:  # what stood between two lines
        found[-1] = (found[-1][0].rstrip(), found[-1][1])
    return tuple(found)
