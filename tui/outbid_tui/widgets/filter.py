"""The line above a list: kinds to choose from with their numbers, and words that a row must have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Static


class Choice(NamedTuple):
    """`name` "" is all of them; `style` of its text, as in Textual's markup."""

    name: str
    text: str
    style: str = ""


class Kinds(Static):
    """Choices side by side; a click takes one."""

    DEFAULT_CSS = """
    Kinds { width: auto; height: 1; }
    """

    def __init__(self) -> None:
        super().__init__("", id="kinds")
        self._shown: tuple[tuple[Choice, ...], str] = ((), "")
        self._ends: list[int] = []

    def show(self, choices: Sequence[Choice], chosen: str) -> None:
        if (now := (tuple(choices), chosen)) == self._shown:
            return
        self._shown = now
        self.update(Content.assemble(*(self._of(choice, choice.name == chosen) for choice in choices)))
        self._ends = []
        for choice in choices:
            self._ends.append((self._ends[-1] if self._ends else 0) + len(choice.text) + 2)

    @staticmethod
    def _of(choice: Choice, chosen: bool) -> tuple[str, str]:
        return (
            f" {choice.text} ",
            "bold $block-cursor-foreground on $block-cursor-background" if chosen else choice.style,
        )

    def on_click(self, event: events.Click) -> None:
        for choice, end in zip(self._shown[0], self._ends, strict=True):
            if event.x < end:
                self.post_message(Filter.Kind(choice.name))
                return


class Words(Input):
    """Escape empties it, or leaves it if it is empty; enter leaves it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "give_up", "Back"),
        Binding("down", "leave", "To the list", show=False),
    ]

    def action_give_up(self) -> None:
        self.value = ""
        self.action_leave()

    def action_leave(self) -> None:
        self.post_message(Filter.Left())

    def on_input_submitted(self) -> None:
        self.action_leave()


class Filter(Horizontal):
    """Says `Filter.Changed` as one types, `Filter.Kind` on a click on a choice, `Filter.Left` when the list should
    have the focus again.
    """

    DEFAULT_CSS = """
    Filter { height: 1; background: $surface; padding: 0 1; }
    Filter > Words { width: 1fr; margin-left: 2; background: $surface; padding: 0; }
    Filter > Words:focus { background: $boost; }
    Filter > #order { width: auto; color: $text-muted; margin-left: 2; }
    """

    class Changed(Message):
        def __init__(self, words: str) -> None:
            super().__init__()
            self.words = words

    class Kind(Message):
        """`kind` is the name of the choice."""

        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind

    class Left(Message):
        pass

    def __init__(self, hint: str = "/ filter") -> None:
        super().__init__(id="filter-line")
        self._hint = hint

    def compose(self) -> ComposeResult:
        yield Kinds()
        yield Words(placeholder=self._hint, id="filter", compact=True)
        yield Static("", id="order", markup=False)

    def show(self, choices: Sequence[Choice], chosen: str, order: str = "") -> None:
        self.query_one(Kinds).show(choices, chosen)
        if (static := self.query_one("#order", Static)).content != order:
            static.update(order)

    def begin(self) -> None:
        self.query_one(Words).focus()

    def clear(self) -> None:
        self.query_one(Words).value = ""

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Changed(event.value))
