"""`outbid watch` and `outbid result`: the answer to standard output, what happens beside it to standard error.

The answer is the text of a chat, the list of files that a job made, or else JSON.
"""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec

from outbid.artifacts import named_in
from outbid.cli import output
from outbid.cli.drawing import remaining
from outbid.cli.sheets import seconds
from outbid.jobs import Job
from outbid_contracts.errors import from_body
from outbid_contracts.events import (
    AttemptLost,
    Awarded,
    Chunk,
    Ended,
    Finished,
    JobEvent,
    Loading,
    Progressed,
    Waiting,
)
from outbid_contracts.images import Preview
from outbid_contracts.llm import ChatResult
from outbid_contracts.pieces import Pieces

if TYPE_CHECKING:
    from rich.status import Status


async def watch(job: Job, *, as_json: bool) -> None:
    """Until its end. Raises the error of a job that failed."""
    show = _JsonLines() if as_json else _Terminal()
    try:
        async with aclosing(job.watch()) as events:
            async for event in events:
                show.event(event)
                if isinstance(event, Ended):
                    raise from_body(event.error)
    finally:
        show.close()


def result(found: dict[str, Any], *, as_json: bool) -> None:
    text, files = _chat_text(found), named_in(found)
    if as_json or (text is None and not files):
        output.say(found)
    elif text is not None:
        output.line(text)
    else:
        output.artifacts(files)


def _chat_text(found: dict[str, Any]) -> str | None:
    try:
        return msgspec.convert(found, ChatResult).text
    except msgspec.ValidationError:
        return None


def _is_preview(event: Chunk) -> bool:
    try:
        msgspec.convert(event.data, Preview)
    except msgspec.ValidationError:
        return False
    return True


class _JsonLines:
    """Every event as one object per line."""

    def event(self, event: JobEvent) -> None:
        output.say(event)

    def close(self) -> None:
        pass


class _Terminal:
    """Pieces of text as they come; other pieces, and other results, as JSON. Steps are one line that changes, previews
    are left out: `outbid image` shows them.

    Text that a further attempt says again is not printed again; what was lost on the way comes with the result.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._pieces = Pieces()
        self._printed = ""
        self._hole = False
        self._open_line = False
        self._steps: Status | None = None

    def close(self) -> None:
        """Nothing more will come."""
        if self._steps is not None:
            self._steps.stop()
            self._steps = None

    def event(self, event: JobEvent) -> None:
        match event:
            case Chunk():
                self._chunk(event)
            case Finished():
                self._finish(event)
            case Awarded():
                self._award(event)
            case Waiting():
                self._say(f"waiting: {event.reason}")
            case Loading():
                part = f" {event.fraction:.0%}" if event.fraction is not None else ""
                self._say(f"loading {event.model or 'the model'}{part} …")
            case Progressed():
                self._step(event)
            case AttemptLost():
                again = "; it goes on elsewhere" if event.retry else ""
                self._say(f"{event.error.message}{again}", style="yellow")
            case Ended():
                self._break()

    def _award(self, event: Awarded) -> None:
        self._pieces.award(event.attempt, event.chunks)
        promise = f", promises {seconds(event.promised_s)}" if event.promised_s else ""
        begun = f" from step {event.step}" if event.step else ""
        self._say(f"{event.name} runs it{begun}{promise}{f' ({event.why})' if event.why else ''}")

    def _chunk(self, event: Chunk) -> None:
        taken = self._pieces.take(event)
        if taken == "hole" and not self._hole:
            self._hole = True
            self._say("pieces were lost while a machine was away; the rest comes at the end", style="yellow")
        if taken != "taken" or _is_preview(event):
            return
        if isinstance(event.data.get("text"), str):
            self._show("".join(str(piece.get("text", "")) for piece in self._pieces.data))
        else:
            output.say(event.data)

    def _step(self, event: Progressed) -> None:
        """One line that changes; in a file, a line for each tenth."""
        from rich.text import Text

        words = [f"step {event.step} of {event.steps}", remaining(event.eta_s), event.note]
        text = "  ".join(filter(None, words))
        if not self._console.is_terminal:
            before, now = ((step * 10) // max(1, event.steps) for step in (event.step - 1, event.step))
            if now > before:
                self._say(text)
            return
        if self._steps is None:
            self._break()
            self._steps = self._console.status("")
            self._steps.start()
        self._steps.update(Text(text))

    def _show(self, text: str) -> None:
        """The text so far, of which some is printed already."""
        if self._printed.startswith(text):
            return
        if not text.startswith(self._printed):
            self._break()
            self._say("the answer starts again", style="yellow")
            self._printed = ""
        self._write(text[len(self._printed) :])
        self._printed = text

    def _finish(self, event: Finished) -> None:
        self.close()
        text = _chat_text(event.result)
        if text is not None:
            self._show(text)
        self._break()
        if text is None:
            result(event.result, as_json=False)
        self._say(f"— {event.name} · outbid why {event.job}", style="dim")

    def _write(self, text: str) -> None:
        self.close()
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self._open_line = not text.endswith("\n")

    def _break(self) -> None:
        if self._open_line:
            self._write("\n")

    def _say(self, text: str, style: str = "dim") -> None:
        if self._open_line and sys.stdout.isatty():
            self._break()
        self._console.print(text, style=style, markup=False, soft_wrap=True)
