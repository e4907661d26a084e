"""Chat with a model of the mesh."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Input, Label, Static, TextArea
from textual.worker import Worker

from outbid import ChatStream, OutbidError
from outbid_contracts.errors import InvalidRequest, StorageFailed
from outbid_contracts.events import JobEvent
from outbid_contracts.llm import CHAT
from outbid_contracts.policy import Policy
from outbid_tui.asking import Asking, Field, line
from outbid_tui.base import MeshScreen
from outbid_tui.calling_off import call_off
from outbid_tui.chat.conversation import Turn, as_markdown, messages
from outbid_tui.chat.widgets import Composer, Exchange
from outbid_tui.missing import why_nobody
from outbid_tui.state import Kind

MAX_TOKENS = 1024
"""Of an answer, unless the form says otherwise: people at a terminal rather stop one than ask again."""

FACTS_EVERY_S = 0.25


class ChatScreen(MeshScreen):
    NAME = "Chat"
    HELP = """Ask, and the machine with the best bid answers. If it is lost on the way, another one goes on where the
text ends, and a line says so. **Enter** sends, **ctrl+j** makes a new line, **escape** stops the answer, **up** brings
back what you asked before. What was asked before and its answer belong to the conversation until **ctrl+n** begins a
new one. **ctrl+o** shows or hides the settings: model, policy, and what holds for the next question."""
    SHOWS: ClassVar[frozenset[Kind]] = frozenset({"nodes", "models"})
    HORIZONTAL_BREAKPOINTS: ClassVar[list[tuple[int, str]] | None] = [(0, "-narrow"), (100, "-wide")]  # type: ignore[misc]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop"),
        Binding("ctrl+o", "settings", "Settings"),
        Binding("ctrl+t", "copy", "Copy"),
        Binding("ctrl+r", "again", "Again"),
        Binding("ctrl+s", "save", "Save"),
        Binding("ctrl+n", "new", "New"),
    ]

    DEFAULT_CSS = """
    ChatScreen #talk { width: 1fr; }
    ChatScreen #turns { height: 1fr; padding-top: 1; scrollbar-size-vertical: 1; }
    ChatScreen #nothing { height: 1fr; content-align: center middle; text-align: center; color: $text-muted; }
    ChatScreen Asking { width: 38; border-left: vkey $primary-muted; display: none; }
    ChatScreen.-wide Asking { display: block; }
    ChatScreen.-narrow.-settings Asking { display: block; }
    ChatScreen.-wide.-settings Asking { display: none; }
    ChatScreen #system { height: 5; border: none; padding: 0 1; margin-bottom: 1; background: $boost; }
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.turns: list[Turn] = []
        self._answering: Worker[None] | None = None

    def body(self) -> ComposeResult:
        with Horizontal():
            with Vertical(id="talk"):
                yield Static(id="nothing", markup=False)
                yield VerticalScroll(id="turns")
                yield Composer("Ask anything. Enter sends, ctrl+j makes a new line.", id="composer")
            yield Asking(
                CHAT,
                Label("Settings", classes="heading"),
                after=(
                    Field("Length", line("max_tokens", f"{MAX_TOKENS} tokens", "integer")),
                    Field("Heat", line("temperature", "the model's own", "number")),
                    Label("System prompt", classes="heading"),
                    TextArea(id="system", placeholder="none", show_line_numbers=False, compact=True),
                ),
            )

    def on_mount(self) -> None:
        self.query_one("#turns").display = False
        self.query_one("#turns", VerticalScroll).anchor()
        self.query_one(Composer).focus()
        self._clock = self.set_interval(FACTS_EVERY_S, self._show_facts, pause=True)

    def show_state(self, changed: frozenset[Kind]) -> None:
        self.query_one(Asking).show(self.state)
        self.query_one("#nothing", Static).update(self._welcome())

    def _welcome(self) -> str:
        models = sorted({view.model for view in self.state.models.models if view.capability == CHAT})
        if models:
            return f"The machines of the mesh bid for each answer.\n\n{' · '.join(models)}"
        return why_nobody(self.state, CHAT, "chat")

    @property
    def busy(self) -> bool:
        return bool(self.turns) and self.turns[-1].under_way

    # -- one question --------------------------------------------------------------------------------------------------

    @on(Composer.Sent)
    def _sent(self, event: Composer.Sent) -> None:
        if self.busy:
            self.notify("The answer is still coming; escape stops it.", severity="warning")
            return
        try:
            policy, params = self.query_one(Asking).policy(), self._params()
        except InvalidRequest as error:
            self.notify(error.message, severity="error")
            return
        self.query_one(Composer).took(event.text)
        self._ask(event.text, policy, params)

    def _params(self) -> dict[str, Any]:
        """Raises InvalidRequest."""
        words = {name: self.query_one(f"#{name}", Input).value.strip() for name in ("max_tokens", "temperature")}
        try:
            tokens = int(words["max_tokens"] or MAX_TOKENS)
            heat = float(words["temperature"]) if words["temperature"] else None
        except ValueError as error:
            raise InvalidRequest("Length and heat are numbers.") from error
        return {"model": self.query_one(Asking).model, "max_tokens": tokens, "temperature": heat}

    @property
    def system(self) -> str:
        return self.query_one("#system", TextArea).text

    def _ask(self, question: str, policy: Policy, params: dict[str, Any]) -> None:
        asked = messages(self.turns, self.system, question)
        turn = Turn(question, time.monotonic())
        self.turns.append(turn)
        exchange = Exchange(turn)
        self.query_one("#nothing").display = False
        turns = self.query_one("#turns", VerticalScroll)
        turns.display = True
        turns.mount(exchange)
        turns.anchor()
        stream = self.dashboard.mesh.chat(
            asked, policy=policy, on_event=lambda event: self._heard(exchange, event), **params
        )
        turn.job = stream.job
        self._answering = self.run_worker(self._answer(exchange, stream), group="answer", exit_on_error=False)
        self._clock.resume()
        self.refresh_bindings()

    def _heard(self, exchange: Exchange, event: JobEvent) -> None:
        exchange.turn.heard(event, self.state.name_of)
        exchange.show()

    async def _answer(self, exchange: Exchange, stream: ChatStream) -> None:
        turn = exchange.turn
        try:
            await self._read(exchange, stream)
            turn.ended(await stream.reply(), time.monotonic())
        except asyncio.CancelledError:
            turn.stopped(time.monotonic())
            await asyncio.shield(call_off(self.dashboard.mesh, stream.job))
            raise
        except OutbidError as error:
            turn.failed(error.message, time.monotonic())
            self.query_one(Composer).give_back(turn.question)
        finally:
            await exchange.finish()
            exchange.show()
            self.refresh_bindings()

    async def _read(self, exchange: Exchange, stream: ChatStream) -> None:
        turn, restarts = exchange.turn, 0
        async for chunk in stream:
            turn.came(chunk.tokens, time.monotonic())
            turn.text = stream.text
            if stream.restarts == restarts:
                await exchange.say(chunk.text)
            else:
                restarts = stream.restarts
                await exchange.say_again(stream.text)

    def _show_facts(self) -> None:
        if self.busy:
            self.query(Exchange).last().show()
        else:
            self._clock.pause()

    # -- keys ----------------------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "stop":
            return self.busy
        if action in ("copy", "again", "save", "new"):
            return bool(self.turns) and (action != "again" or not self.busy)
        return super().check_action(action, parameters)

    def action_stop(self) -> None:
        if self.busy and self._answering is not None:
            self._answering.cancel()

    def action_settings(self) -> None:
        self.toggle_class("-settings")
        shown = self.query_one(Asking)
        (shown.query_one("#model") if shown.display else self.query_one(Composer)).focus()

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self.turns[-1].text)
        self.notify("The answer is in the clipboard.")

    def action_again(self) -> None:
        """The last question anew; the answer that it had does not count any more."""
        if self.turns and not self.busy:
            turn = self.turns.pop()
            self.query(Exchange).last().remove()
            self.post_message(Composer.Sent(turn.question))

    def action_new(self) -> None:
        self.action_stop()
        self.turns = []
        self.query(Exchange).remove()
        self.query_one("#turns").display = False
        self.query_one("#nothing").display = True
        self.query_one(Composer).focus()
        self.refresh_bindings()

    def action_save(self) -> None:
        text = as_markdown(self.turns, self.system, time.monotonic())
        self.dashboard.ask("Save the conversation as", "conversation.md", lambda name: self._save(name, text))

    def _save(self, name: str, text: str) -> None:
        self.dashboard.act(asyncio.to_thread(_write, Path(name).expanduser(), text), f"Saved as {name}")


def _write(path: Path, text: str) -> None:
    """Raises StorageFailed."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise StorageFailed(f"{path} cannot be written: {error.strerror or error}") from error
