"""What a job's events tell: its course in lines, its text so far, how far it is. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import msgspec

from outbid.artifacts import named_in
from outbid.cli.drawing import remaining
from outbid.cli.sheets import seconds
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
from outbid_contracts.pieces import Pieces
from outbid_tui.looks import Look, size

LINES = 500
"""Of its course that are kept."""


@dataclass(slots=True)
class Story:
    """`take` each event in order. `lines` are its course, `text` what it answered so far."""

    lines: list[tuple[str, Look]] = field(default_factory=list)
    text: str = ""
    step: int = 0
    steps: int = 0
    told: str = ""
    """Of the newest step: how long it takes still, and the runner's note."""
    node: str = ""
    ended: bool = False
    _pieces: Pieces = field(default_factory=Pieces)
    _holed: bool = False

    def take(self, event: JobEvent) -> None:
        match event:
            case Chunk():
                self._chunk(event)
            case Awarded():
                self._award(event)
            case Waiting():
                self._say(f"waiting: {event.reason}", "warn")
            case Loading():
                part = f" {event.fraction:.0%}" if event.fraction is not None else ""
                self._say(f"loading {event.model or 'the model'}{part} …")
            case Progressed():
                self.step, self.steps = event.step, event.steps
                self.told = "  ".join(filter(None, (remaining(event.eta_s), event.note)))
            case AttemptLost():
                self._pieces.lose(event.attempt)
                again = "; it goes on elsewhere" if event.retry else ""
                self._say(f"{event.error.message}{again}", "warn")
            case Finished():
                self._finish(event)
            case Ended():
                self.ended = True
                self._say(f"{event.error.code}: {event.error.message}", "bad")

    def _award(self, event: Awarded) -> None:
        self._pieces.award(event.attempt, event.chunks)
        self.node = event.name
        begun = f" from step {event.step}" if event.step else f" from piece {event.chunks + 1}" if event.chunks else ""
        promise = f", promises {seconds(event.promised_s)}" if event.promised_s else ""
        self._say(f"attempt {event.attempt}: {event.name} runs it{begun}{promise}", "accent")
        if event.why:
            self._say(f"  {event.why}", "dim")

    def _chunk(self, event: Chunk) -> None:
        taken = self._pieces.take(event)
        if taken == "hole" and not self._holed:
            self._holed = True
            self._say("pieces were lost while a machine was away; the rest comes at the end", "warn")
        if taken != "taken":
            return
        if isinstance(event.data.get("text"), str):
            self.text = "".join(str(piece.get("text", "")) for piece in self._pieces.data)
        elif not _is(event.data, Preview):
            self._say(json.dumps(event.data, ensure_ascii=False, default=str), "dim")

    def _finish(self, event: Finished) -> None:
        self.ended, self.node = True, event.name
        self.text = answer(event.result)
        self.step = self.steps
        took = ", ".join(f"{name.removesuffix('_s')} {seconds(value)}" for name, value in event.timings.items())
        self._say(f"done on {event.name}{f': {took}' if took else ''}", "good")

    def _say(self, line: str, look: Look = "") -> None:
        if not self.lines or self.lines[-1] != (line, look):
            self.lines.append((line, look))
            del self.lines[:-LINES]


def answer(result: dict[str, Any]) -> str:
    """The text of a chat, else the files that it made, else all of it as JSON."""
    if isinstance(result.get("text"), str):
        return str(result["text"])
    if files := named_in(result):
        return "\n".join(f"{one.name}  {one.type}  {size(one.size / 2**20)}  {one.id}" for one in files)
    return json.dumps(msgspec.to_builtins(result), indent=2, ensure_ascii=False, default=str)


def _is(data: dict[str, Any], type: Any) -> bool:
    try:
        msgspec.convert(data, type)
    except msgspec.ValidationError:
        return False
    return True
