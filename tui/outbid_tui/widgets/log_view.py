"""Thousands of log lines, of which only those on view are made; it follows the newest until somebody looks back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import ClassVar, NamedTuple

from rich.cells import cell_len
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip

from outbid_contracts.live import LogLine
from outbid_tui.log_lines import Wanted, as_cell, indent, said
from outbid_tui.looks import Cell
from outbid_tui.widgets.cells import CellView
from outbid_tui.widgets.pane import wrapped


class LogRow(NamedTuple):
    line: LogLine
    part: Cell | None
    """A piece of a wrapped line; None: the whole of it."""


class LogView(CellView):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "first", "First", show=False),
        Binding("end", "follow", "Newest", show=False),
    ]

    class Followed(Message):
        """It follows the newest line from now on, or does not."""

        def __init__(self, following: bool) -> None:
            super().__init__()
            self.following = following

    def __init__(self, most: int, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.most = most
        self.wanted = Wanted()
        self.wrap = False
        self.following = True
        self._lines: deque[LogLine] = deque(maxlen=most)
        """All, wanted or not."""
        self._rows: list[LogRow] = []
        self._cursor: int | None = None
        self.empty = ""
        """Said where no lines are."""

    @property
    def rows(self) -> list[LogRow]:
        return self._rows

    @property
    def chosen(self) -> LogLine | None:
        return self._rows[self._cursor].line if self._cursor is not None and self._cursor < len(self._rows) else None

    @property
    def count(self) -> int:
        """Of all lines, wanted or not."""
        return len(self._lines)

    def shown(self) -> list[LogLine]:
        """The wanted ones, the oldest first."""
        return [line for line in self._lines if self.wanted.has(line)]

    def replace(self, lines: Iterable[LogLine]) -> None:
        self._lines = deque(lines, maxlen=self.most)
        self.lay_out()

    def add(self, lines: Iterable[LogLine]) -> None:
        before = len(self._rows)
        gone = 0
        for line in lines:
            if len(self._lines) == self.most:
                gone += self._rows_at_top(gone, self._lines[0])
            self._lines.append(line)
            if self.wanted.has(line):
                self._rows.extend(self._rows_of(line))
        if gone:
            self._lose(gone)
        elif len(self._rows) > before:
            self._measured()
            self.refresh_lines(before, len(self._rows) - before)

    def _rows_at_top(self, at: int, line: LogLine) -> int:
        """How many rows from `at` on are of this line."""
        end = at
        while end < len(self._rows) and self._rows[end].line is line:
            end += 1
        return end - at

    def _lose(self, gone: int) -> None:
        """The oldest rows go; what one looks at stays where it is."""
        del self._rows[:gone]
        if self._cursor is not None:
            self._cursor = max(0, self._cursor - gone)
        self._measured()
        if not self.following:
            self.scroll_to(y=max(0, self.scroll_offset.y - gone), animate=False, force=True, immediate=True)
        self.refresh()

    def want(self, wanted: Wanted) -> None:
        if wanted != self.wanted:
            self.wanted = wanted
            self._cursor = None
            self.lay_out()

    def say(self, empty: str) -> None:
        if empty != self.empty:
            self.empty = empty
            self.refresh()

    def lay_out(self) -> None:
        chosen = self.chosen
        self._rows = [row for line in self._lines if self.wanted.has(line) for row in self._rows_of(line)]
        self._cursor = None
        if chosen is not None:
            self._cursor = next((at for at, row in enumerate(self._rows) if row.line is chosen), None)
        self._measured()
        if self._cursor is not None and not self.following:
            self._reveal(self._cursor)
        self.refresh()

    def follow(self, following: bool) -> None:
        if following != self.following:
            self.following = following
            self.post_message(self.Followed(following))
        if following:
            if self._cursor is not None:
                self._cursor = None
                self.refresh()
            self.scroll_to(y=self.max_scroll_y, animate=False, force=True, immediate=True)

    def _rows_of(self, line: LogLine) -> list[LogRow]:
        width = self.room
        gap = [LogRow(line, ((f"{'':>8} … {line.dropped} lines were left out", "dim"),))] if line.dropped else []
        if not self.wrap or width < 20 or indent(width) + cell_len(said(line)) <= width:
            return [*gap, LogRow(line, None)]
        return [*gap, *(LogRow(line, part) for part in wrapped(as_cell(line, width), width, indent(width)))]

    def _measured(self) -> None:
        self.virtual_size = Size(self.room, len(self._rows))
        if self.following:
            self.scroll_to(y=self.max_scroll_y, animate=False, force=True, immediate=True)

    def on_resize(self) -> None:
        self.lay_out()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if new_value < old_value and round(new_value) < self.max_scroll_y:
            self.follow(False)
        elif new_value > old_value and round(new_value) >= self.max_scroll_y and self._cursor is None:
            self.follow(True)

    def render_line(self, y: int) -> Strip:
        at = self.scroll_offset.y + y
        if at >= len(self._rows):
            return self.blank(f"  {self.empty}" if y == 1 and not self._rows else "")
        row = self._rows[at]
        width = self.room
        base = self.ground
        if self._cursor is not None and row.line is self._rows[self._cursor].line:
            base += self.look("cursor")
        return Strip(self.segments(row.part if row.part is not None else as_cell(row.line, width), width, base), width)

    def _reveal(self, at: int) -> None:
        top, room = self.scroll_offset.y, max(1, self.size.height)
        if not top <= at < top + room:
            self.scroll_to(y=at if at < top else at - room + 1, animate=False, force=True, immediate=True)

    def _go(self, at: int) -> None:
        if not self._rows:
            return
        self.follow(False)
        self._cursor = max(0, min(at, len(self._rows) - 1))
        self._reveal(self._cursor)
        self.refresh()

    def action_move(self, by: int) -> None:
        if self._cursor is None:
            bottom = min(len(self._rows), self.scroll_offset.y + self.size.height) - 1
            self._go(bottom)
        else:
            self._go(self._beyond(self._cursor, by))

    def _beyond(self, at: int, by: int) -> int:
        """The next row of another line."""
        line = self._rows[at].line
        while 0 <= at + by < len(self._rows):
            at += by
            if self._rows[at].line is not line:
                break
        return at

    def action_page(self, by: int) -> None:
        at = (
            self._cursor if self._cursor is not None else self.scroll_offset.y + (self.size.height - 1 if by > 0 else 0)
        )
        self._go(at + by * max(1, self.size.height - 1))

    def action_first(self) -> None:
        self._go(0)

    def action_follow(self) -> None:
        self.follow(True)

    def on_click(self, event: events.Click) -> None:
        event.stop()
        at = self.scroll_offset.y + event.y
        if at < len(self._rows):
            self._go(at)
