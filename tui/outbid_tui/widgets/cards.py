"""Cards side by side, as many in a row as fit; only what changed is painted anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class Card(NamedTuple):
    """`lines` is called with the width inside the frame when the card is painted; a greater `version` says that they
    have changed.
    """

    key: str
    version: object
    title: str
    mark: Cell
    lines: Callable[[int], Sequence[Cell]]


class CardGrid(CellView):
    """`least` is the width of a card, which grows until the row is filled; `tall` its height with the frame."""

    DEFAULT_CSS = """
    CardGrid { background: $background; scrollbar-background: $background; }
    CardGrid > .look--cursor { background: $surface; color: $text-primary; text-style: bold; }
    CardGrid:focus > .look--cursor { background: $surface; color: $primary; text-style: bold; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "move(-1)", "Left", show=False),
        Binding("right,l", "move(1)", "Right", show=False),
        Binding("up,k", "move_row(-1)", "Up", show=False),
        Binding("down,j", "move_row(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "edge(0)", "First", show=False),
        Binding("end", "edge(1)", "Last", show=False),
        Binding("enter", "open", "Open", show=False),
    ]

    class Chosen(Message):
        def __init__(self, grid: CardGrid, key: str | None) -> None:
            super().__init__()
            self.grid = grid
            self.key = key

        @property
        def control(self) -> CardGrid:
            return self.grid

    class Opened(Message):
        def __init__(self, grid: CardGrid, key: str) -> None:
            super().__init__()
            self.grid = grid
            self.key = key

        @property
        def control(self) -> CardGrid:
            return self.grid

    def __init__(self, least: int, tall: int, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.least = least
        self.tall = tall
        self._cards: list[Card] = []
        self._cursor: str | None = None
        self._made: dict[str, tuple[object, int, list[Cell]]] = {}

    @property
    def key(self) -> str | None:
        return self._cursor

    def show(self, cards: Sequence[Card]) -> None:
        before, self._cards = self._cards, list(cards)
        keys = {card.key for card in cards}
        self._made = {key: made for key, made in self._made.items() if key in keys}
        if len(before) != len(self._cards):
            self._measure()
            self.refresh()
        if self._cursor not in keys:
            self._set_cursor(self._cards[0].key if self._cards else None)
        for at, (old, new) in enumerate(zip(before, self._cards, strict=False)):
            if (old.key, old.version, old.title, old.mark) != (new.key, new.version, new.title, new.mark):
                self._refresh_card(at)

    def choose(self, key: str) -> None:
        at = next((at for at, card in enumerate(self._cards) if card.key == key), None)
        if at is not None:
            self._go(at)

    @property
    def _across(self) -> int:
        return max(1, self.room // self.least)

    @property
    def _wide(self) -> int:
        return max(4, self.room // self._across)

    @property
    def _at(self) -> int:
        return next((at for at, card in enumerate(self._cards) if card.key == self._cursor), 0)

    def _measure(self) -> None:
        rows = -(-len(self._cards) // self._across)
        self.virtual_size = Size(self.room, rows * self.tall)

    def on_resize(self) -> None:
        self._measure()

    def _refresh_card(self, at: int) -> None:
        row, column = divmod(at, self._across)
        top = row * self.tall - self.scroll_offset.y
        if -self.tall < top < self.size.height:
            self.refresh(Region(column * self._wide, top, self._wide, self.tall).intersection(self.size.region))

    def _set_cursor(self, key: str | None) -> None:
        if key != self._cursor:
            self._cursor = key
            self.post_message(self.Chosen(self, key))

    def render_line(self, y: int) -> Strip:
        row, line = divmod(y + self.scroll_offset.y, self.tall)
        first = row * self._across
        segments: list[Segment] = []
        for card in self._cards[first : first + self._across]:
            segments.extend(self._card_line(card, line))
        used = min(self._across, max(0, len(self._cards) - first)) * self._wide
        if used < self.room:
            segments.append(Segment(" " * (self.room - used), self.ground))
        return Strip(segments, max(used, self.room))

    def _card_line(self, card: Card, line: int) -> list[Segment]:
        chosen = card.key == self._cursor
        base = self.ground
        frame = base + (self._frame() if chosen else self.look("dim"))
        inside = self._wide - 4
        if line == 0:
            return self._top(card, frame, base, chosen)
        if line == self.tall - 1:
            return [Segment(_bottom(self._wide - 1, chosen) + " ", frame)]
        lines = self._lines(card, inside - 1)
        cell = lines[line - 1] if line <= len(lines) else ""
        side = "┃" if chosen else "│"
        return [Segment(f"{side} ", frame), *self.segments(cell, inside - 1, base), Segment(f" {side} ", frame)]

    def _frame(self) -> Style:
        return Style(color=self.get_component_rich_style("look--cursor").color, bold=True)

    def _top(self, card: Card, frame: Style, base: Style, chosen: bool) -> list[Segment]:
        mark = self.segments(card.mark, _width(card.mark), base)
        room = self._wide - 1 - 6 - _width(card.mark) - 2
        left, bar, right = ("┏", "━", "┓") if chosen else ("╭", "─", "╮")
        title = card.title if len(card.title) <= room else card.title[: max(0, room - 1)] + "…"
        return [
            Segment(f"{left}{bar} ", frame),
            Segment(title, base + self.look("bold")),
            Segment(f" {bar * max(0, room - len(title))} ", frame),
            *mark,
            Segment(f" {bar}{right} ", frame),
        ]

    def _lines(self, card: Card, width: int) -> list[Cell]:
        made = self._made.get(card.key)
        if made is None or made[:2] != (card.version, width):
            made = self._made[card.key] = (card.version, width, list(card.lines(width)))
        return made[2]

    def _go(self, at: int) -> None:
        if not self._cards:
            return
        at = max(0, min(at, len(self._cards) - 1))
        old = self._at
        self._set_cursor(self._cards[at].key)
        top, room = at // self._across * self.tall, self.size.height
        if top < self.scroll_offset.y or top + self.tall > self.scroll_offset.y + room:
            y = top if top < self.scroll_offset.y else top + self.tall - room
            self.scroll_to(y=y, animate=False, force=True, immediate=True)
        self._refresh_card(old)
        self._refresh_card(at)

    def action_move(self, by: int) -> None:
        self._go(self._at + by)

    def action_move_row(self, by: int) -> None:
        at = self._at + by * self._across
        if 0 <= at < len(self._cards):
            self._go(at)

    def action_page(self, by: int) -> None:
        self._go(self._at + by * self._across * max(1, self.size.height // self.tall))

    def action_edge(self, last: int) -> None:
        self._go(len(self._cards) - 1 if last else 0)

    def action_open(self) -> None:
        if self._cursor is not None:
            self.post_message(self.Opened(self, self._cursor))

    def on_click(self, event: events.Click) -> None:
        event.stop()
        row = (event.y + self.scroll_offset.y) // self.tall
        column = event.x // self._wide
        at = row * self._across + column
        if column < self._across and at < len(self._cards):
            again = self._cards[at].key == self._cursor and event.chain >= 2
            self._go(at)
            if again:
                self.action_open()


def _bottom(width: int, chosen: bool) -> str:
    return f"┗{'━' * (width - 2)}┛" if chosen else f"╰{'─' * (width - 2)}╯"


def _width(cell: Cell) -> int:
    return len(cell) if isinstance(cell, str) else sum(len(text) for text, _ in cell)
