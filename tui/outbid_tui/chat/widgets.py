"""The composer, and a question with its answer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.events import Key
from textual.message import Message
from textual.widgets import Markdown, Static, TextArea
from textual.widgets.markdown import MarkdownStream

from outbid_tui.chat.conversation import Turn, facts


class Composer(TextArea):
    """Several lines; enter sends them. Up in the first line brings back what was asked before."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send", priority=True),
        Binding("ctrl+j,shift+enter,alt+enter", "newline", "New line", key_display="^j", priority=True),
    ]

    DEFAULT_CSS = """
    Composer {
        height: auto; min-height: 3; max-height: 10; padding: 0 1; scrollbar-size-vertical: 1;
        border: round $primary-muted; background: transparent;
    }
    Composer:focus { border: round $accent; }
    """

    @dataclass
    class Sent(Message):
        text: str

    def __init__(self, placeholder: str, id: str | None = None) -> None:
        super().__init__(placeholder=placeholder, id=id, soft_wrap=True, show_line_numbers=False)
        self.highlight_cursor_line = False
        self._asked: list[str] = []
        self._back = 0

    def action_send(self) -> None:
        if text := self.text.strip():
            self.post_message(self.Sent(text))

    def action_newline(self) -> None:
        self.insert("\n")

    def took(self, text: str) -> None:
        """It was sent: make room for the next."""
        self._asked.append(text)
        self._back = 0
        self.text = ""

    def give_back(self, text: str) -> None:
        """Nothing came of it: unless something else was begun."""
        if not self.text.strip():
            self._write(text)

    def on_key(self, event: Key) -> None:
        if event.key == "up" and self.cursor_location[0] == 0 and self._back < len(self._asked):
            self._recall(self._back + 1)
        elif event.key == "down" and self._back and self.cursor_location[0] == self.document.line_count - 1:
            self._recall(self._back - 1)
        else:
            return
        event.prevent_default()
        event.stop()

    def _recall(self, back: int) -> None:
        self._back = back
        self._write(self._asked[-back] if back else "")

    def _write(self, text: str) -> None:
        self.text = text
        self.move_cursor(self.document.end)


class Exchange(Vertical):
    """One turn. The text is appended as it comes, so that a long answer costs no more per piece than a short one."""

    DEFAULT_CSS = """
    Exchange { height: auto; margin: 0 1 1 1; }
    Exchange > .question {
        height: auto; padding: 0 1; margin-bottom: 1; background: $boost; border-left: outer $accent;
    }
    Exchange > Markdown { height: auto; padding: 0 1; margin: 0; background: transparent; }
    Exchange > Markdown > *:last-child { margin-bottom: 0; }
    Exchange > .happened { height: auto; padding: 0 1; color: $text-warning; display: none; }
    Exchange > .facts { height: auto; padding: 0 1; color: $text-muted; }
    Exchange.-said > Markdown { margin-bottom: 1; }
    Exchange > .why {
        height: 1; padding: 0 1; color: $text-disabled; text-wrap: nowrap; text-overflow: ellipsis; display: none;
    }
    Exchange.-failed > .facts { color: $text-error; }
    """

    def __init__(self, turn: Turn) -> None:
        super().__init__()
        self.turn = turn
        self.answer = Markdown("", open_links=False)
        self._stream: MarkdownStream | None = None
        self._shown: tuple[str, ...] = ()

    def compose(self) -> ComposeResult:
        yield Static(self.turn.question, classes="question", markup=False)
        yield self.answer
        yield Static(classes="happened", markup=False)
        yield Static(classes="facts", markup=False)
        yield Static(classes="why", markup=False)

    def on_mount(self) -> None:
        self.show()

    async def say(self, text: str) -> None:
        if self._stream is None:
            self._stream = Markdown.get_stream(self.answer)
        await self._stream.write(text)

    async def say_again(self, text: str) -> None:
        """The answer began again: this is all of it so far."""
        await self.finish()
        await self.answer.update(text)

    async def finish(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.stop()

    def show(self) -> None:
        """What happened, and the line of facts."""
        turn = self.turn
        happened = "\n".join(f"⇄ {note}" for note in turn.happened)
        line = f"✗ {turn.error}" if turn.stage == "failed" else facts(turn, time.monotonic())
        if self.children and (happened, line, turn.why) != self._shown:
            self._shown = (happened, line, turn.why)
            self.set_class(turn.stage == "failed", "-failed")
            self.set_class(bool(turn.text), "-said")
            self._write("happened", happened)
            self._write("facts", line)
            self._write("why", turn.why)

    def _write(self, part: str, text: str) -> None:
        found = self.query_one(f".{part}", Static)
        found.display = bool(text)
        found.update(Content(text))
