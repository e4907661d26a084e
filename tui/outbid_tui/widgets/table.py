"""A table of any length that repaints the cells that changed, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.strip import Strip

from outbid_tui.looks import Cell
from outbid_tui.widgets.cells import CellView

GAP = 2
"""Blank characters between two columns."""


class Column(NamedTuple):
    """`width` in characters; `grow` is its share of what is left over. Where the room is short the columns of the
    lowest `keep` go first, of equal ones the last.
    """

    name: str
    width: int
    grow: int = 0
    keep: int = 0
    right: bool = False


Row = tuple[str, Sequence[Cell]]
"""Its key, which stays the same while it is shown, and a cell for each column."""


class LiveTable(CellView):
    """`show` the rows as often as you like. The cursor stays on its row, wherever that moves to; at the top it stays at
    the top.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "edge(0)", "First", show=False),
        Binding("end", "edge(1)", "Last", show=False),
        Binding("enter", "open", "Open", show=False),
    ]

    class Chosen(Message):
        """The cursor is on another row; `key` is None when there are no rows."""

        def __init__(self, table: LiveTable, key: str | None) -> None:
            super().__init__()
            self.table = table
            self.key = key

        @property
        def control(self) -> LiveTable:
            return self.table

    class Opened(Message):
        """Enter, or a second click on the row."""

        def __init__(self, table: LiveTable, key: str) -> None:
            super().__init__()
            self.table = table
            self.key = key

        @property
        def control(self) -> LiveTable:
            return self.table

    class Heading(Message):
        """A click on the name of a column."""

        def __init__(self, table: LiveTable, column: str) -> None:
            super().__init__()
            self.table = table
            self.column = column

        @property
        def control(self) -> LiveTable:
            return self.table

    def __init__(self, *columns: Column, empty: str = "", id: str | None = None, classes: str | None = None) -> None:
        """`empty` is said where there are no rows."""
        super().__init__(id=id, classes=classes)
        self.columns = columns
        self._empty = empty
        self._rows: list[Row] = []
        self._index: dict[str, int] = {}
        self._cursor: str | None = None
        self._chosen_by_hand = False
        self._placed: list[tuple[int, int, int]] = []

    @property
    def key(self) -> str | None:
        """Of the row that the cursor is on."""
        return self._cursor

    @property
    def rows(self) -> list[Row]:
        return self._rows

    def width_of(self, name: str) -> int:
        """What the column has now; 0 where it is hidden."""
        return next((width for number, _, width in self._placed if self.columns[number].name == name), 0)

    def show(self, rows: Sequence[Row]) -> None:
        before, old_at = self._rows, self._at
        self._rows = list(rows)
        self._index = {row[0]: at for at, row in enumerate(self._rows)}
        if len(before) != len(self._rows):
            self.virtual_size = Size(self.room, len(self._rows) + 1)
        self._keep_cursor(old_at)
        self._repaint(before)

    def say(self, empty: str) -> None:
        """What is said where there are no rows."""
        if empty != self._empty:
            self._empty = empty
            self.refresh()

    def choose(self, key: str) -> None:
        """Put the cursor on this row, if it is there."""
        if key in self._index:
            self._chosen_by_hand = True
            self._go(self._index[key])

    @property
    def _at(self) -> int:
        return self._index.get(self._cursor, 0) if self._cursor is not None else 0

    def _keep_cursor(self, old_at: int) -> None:
        if not self._rows:
            self._set_cursor(None)
        elif self._cursor not in self._index or not self._chosen_by_hand:
            self._set_cursor(self._rows[min(old_at, len(self._rows) - 1) if self._chosen_by_hand else 0][0])
        elif (moved := self._at - old_at) and self._in_view(old_at):
            self.scroll_to(y=self.scroll_offset.y + moved, animate=False, force=True, immediate=True)

    def _set_cursor(self, key: str | None) -> None:
        if key != self._cursor:
            self._cursor = key
            self.post_message(self.Chosen(self, key))

    def _in_view(self, at: int) -> bool:
        return self.scroll_offset.y <= at < self.scroll_offset.y + self.size.height - 1

    def _repaint(self, before: list[Row]) -> None:
        """Of the rows on view, the cells that are not as they were."""
        if bool(before) != bool(self._rows):
            self.refresh()
            return
        top = self.scroll_offset.y
        for y in range(1, self.size.height):
            at = top + y - 1
            old = before[at] if at < len(before) else None
            new = self._rows[at] if at < len(self._rows) else None
            if old is new or old == new:
                continue
            if old is None or new is None or old[0] != new[0]:
                self.refresh(Region(0, y, self.room, 1))
                continue
            for number, x, width in self._placed:
                if old[1][number] != new[1][number]:
                    self.refresh(Region(x, y, width, 1))

    def on_resize(self) -> None:
        self._placed = placed(self.columns, self.room)
        self.virtual_size = Size(self.room, len(self._rows) + 1)

    def render_line(self, y: int) -> Strip:
        if y == 0:
            return self._heading()
        at = self.scroll_offset.y + y - 1
        if at >= len(self._rows):
            return self.blank(f"  {self._empty}" if not self._rows and y == 2 else "")
        key, cells = self._rows[at]
        base = self.ground
        if key == self._cursor:
            base += self.look("cursor")
        return self._line(cells, base)

    def _heading(self) -> Strip:
        names = [column.name for column in self.columns]
        return self._line(names, self.ground + self.look("heading"))

    def _line(self, cells: Sequence[Cell], base: Style) -> Strip:
        segments: list[Segment] = []
        x = 0
        for number, start, width in self._placed:
            if start > x:
                segments.append(Segment(" " * (start - x), base))
            segments.extend(self.segments(cells[number], width, base, right=self.columns[number].right))
            x = start + width
        segments.append(Segment(" " * max(0, self.room - x), base))
        return Strip(segments, max(self.room, x))

    def _go(self, at: int) -> None:
        if not self._rows:
            return
        at = max(0, min(at, len(self._rows) - 1))
        old = self._at
        self._chosen_by_hand = at > 0
        self._set_cursor(self._rows[at][0])
        top, room = self.scroll_offset.y, max(1, self.size.height - 1)
        if not top <= at < top + room:
            self.scroll_to(y=at if at < top else at - room + 1, animate=False, force=True, immediate=True)
        for changed in (old, at):
            self.refresh(Region(0, changed - self.scroll_offset.y + 1, self.room, 1))

    def action_move(self, by: int) -> None:
        self._go(self._at + by)

    def action_page(self, by: int) -> None:
        self._go(self._at + by * max(1, self.size.height - 2))

    def action_edge(self, last: int) -> None:
        self._go(len(self._rows) - 1 if last else 0)

    def action_open(self) -> None:
        if self._cursor is not None:
            self.post_message(self.Opened(self, self._cursor))

    def on_click(self, event: events.Click) -> None:
        event.stop()
        if event.y == 0:
            for number, x, width in self._placed:
                if x <= event.x < x + width:
                    self.post_message(self.Heading(self, self.columns[number].name))
            return
        at = self.scroll_offset.y + event.y - 1
        if at < len(self._rows):
            again = self._rows[at][0] == self._cursor and event.chain >= 2
            self._go(at)
            self._chosen_by_hand = True
            if again:
                self.action_open()


def placed(columns: Sequence[Column], width: int) -> list[tuple[int, int, int]]:
    """Which columns fit: their number, where they begin and how wide they are."""
    kept = list(range(len(columns)))
    while len(kept) > 1 and _needed(columns, kept) > width:
        kept.remove(min(kept, key=lambda number: (columns[number].keep, -number)))
    left = max(0, width - _needed(columns, kept))
    shares = sum(columns[number].grow for number in kept)
    result = []
    x = 1
    for number in kept:
        column = columns[number]
        extra = left * column.grow // shares if shares else 0
        left, shares = left - extra, shares - column.grow
        room = min(column.width + extra, max(1, width - x))
        result.append((number, x, room))
        x += room + GAP
    return result


def _needed(columns: Sequence[Column], kept: Sequence[int]) -> int:
    return 1 + sum(columns[number].width for number in kept) + GAP * (len(kept) - 1)
