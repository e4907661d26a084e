"""A few choices above a screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList
from textual.widgets.option_list import Option


class Choose(ModalScreen[str | None]):
    """One of `choices`, each a word and what it means; None if it was given up."""

    DEFAULT_CSS = """
    Choose { align: center middle; }
    Choose OptionList, Choose OptionList:focus { border: none; background: $surface; height: auto; padding: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "give_up", "Cancel")]

    def __init__(self, title: str, choices: Sequence[tuple[str, str]], now: str = "") -> None:
        super().__init__()
        self._title_text = title
        self._choices = choices
        self._now = now

    def compose(self) -> ComposeResult:
        width = max(len(word) for word, _ in self._choices)
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = self._title_text
            yield OptionList(
                *(Option(f"{word:{width}}  {told}", id=word) for word, told in self._choices), markup=False
            )

    def on_mount(self) -> None:
        options = self.query_one(OptionList)
        words = [word for word, _ in self._choices]
        options.highlighted = words.index(self._now) if self._now in words else 0
        options.focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)

    def action_give_up(self) -> None:
        self.dismiss(None)
