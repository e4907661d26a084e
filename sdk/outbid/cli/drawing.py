"""A picture being drawn, for people (a bar, the preview, the picture) or for programs (JSON lines)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from outbid.cli import output, picture
from outbid.images import Picture, Pictures, Step
from outbid_contracts.events import AttemptLost, Awarded, JobEvent, Loading, Waiting

SHOWN_BYTES = 32 * 2**20
"""Larger files are saved but not decoded for the terminal."""


class Display(Protocol):
    def event(self, event: JobEvent) -> None: ...

    def step(self, step: Step) -> None: ...

    async def end(self, pictures: Pictures, paths: Sequence[Path]) -> None: ...

    def close(self) -> None:
        """Nothing more will come but `end`. May be called twice."""
        ...


class Terminal:
    """Paths to standard output, and the picture if that is a terminal; what happens meanwhile to standard error."""

    def __init__(self, no_preview: bool = False, no_show: bool = False) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._preview = not no_preview
        self._show = not no_show
        self._attempt = 0
        self._live = _Live(self._console) if self._console.is_terminal else None

    def event(self, event: JobEvent) -> None:
        match event:
            case Awarded():
                if self._attempt and event.attempt > self._attempt:
                    what = f"went on at step {event.step}" if event.step else "began again"
                    self._tell(f"{what} on {event.name}")
                self._attempt = event.attempt
                self._say(f"{event.name} draws")
            case Waiting():
                self._say(f"waiting for a free slot: {event.reason}")
            case Loading():
                part = f" {event.fraction:.0%}" if event.fraction is not None else ""
                self._say(f"loading {event.model or 'the model'}{part} …")
            case AttemptLost():
                self._tell(f"{event.error.message}{'; another node takes over' if event.retry else ''}")
            case _:
                pass

    def step(self, step: Step) -> None:
        if self._live is None:
            return
        if step.preview is None:
            self._live.progress(step)
        elif self._preview:
            self._live.preview(step.preview)

    async def end(self, pictures: Pictures, paths: Sequence[Path]) -> None:
        self.close()
        if self._show and sys.stdout.isatty():
            picture.show(await asyncio.to_thread(_contents, paths))
        for path in paths:
            output.line(str(path))
        for note in pictures.notes:
            self._tell(note)
        self._console.print(f"— {facts(pictures)} · outbid why {pictures.job}", style="dim", soft_wrap=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.close()
            self._live = None

    def _say(self, text: str) -> None:
        if self._live is not None:
            self._live.say(text)

    def _tell(self, text: str) -> None:
        """What stays on the screen."""
        self._console.print(text, style="yellow", markup=False, soft_wrap=True)


def facts(pictures: Pictures) -> str:
    """As `pi · emoji · 64x64 · 8 steps · seed 42 · 0.2 s · 3 J`."""
    drawn = pictures.facts
    seeds = f"seed {pictures.seeds[0]}" + (f" to {pictures.seeds[-1]}" if len(pictures.seeds) > 1 else "")
    words = [pictures.name, drawn.model, f"{drawn.width}x{drawn.height}", f"{drawn.steps} steps", seeds]
    words += [f"{drawn.frames} frames"] if drawn.frames else []
    words += [f"{drawn.seconds:.1f} s"]
    words += [f"{drawn.joules:.0f} J"] if drawn.joules is not None else []
    return " · ".join(words)


def remaining(eta_s: float | None) -> str:
    """
    >>> remaining(0.4), remaining(75), remaining(4000), remaining(0), remaining(None)
    ('1 s left', '1:15 left', '1:06:40 left', '', '')
    """
    if not eta_s:
        return ""
    s = max(1, round(eta_s))
    if s < 60:
        return f"{s} s left"
    hours = f"{s // 3600}:{s // 60 % 60:02}" if s >= 3600 else str(s // 60)
    return f"{hours}:{s % 60:02} left"


class _Live:
    """The lines that change in place: the preview above the bar. They go when it is closed."""

    def __init__(self, console: Any) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = console
        columns = ("{task.description}", "step {task.completed:.0f} of {task.total:.0f}", "{task.fields[left]}")
        head, count, left = (TextColumn(text, markup=False) for text in columns)
        self._bar = Progress(head, BarColumn(bar_width=24), count, left)
        self._task: Any = None
        self._node = ""
        self._picture: Any = None
        self._live = Live(
            self._shown("asking the mesh for bids …"), console=console, transient=True, auto_refresh=False
        )
        self._live.start(refresh=True)

    def say(self, text: str) -> None:
        """What goes on before the first step."""
        if self._task is None:
            self._live.update(self._shown(text), refresh=True)

    def progress(self, step: Step) -> None:
        if self._task is None:
            self._task = self._bar.add_task("", total=step.steps, left="")
        self._bar.update(
            self._task,
            completed=step.step,
            total=step.steps,
            description=step.node,
            left=remaining(step.eta_s),
        )
        self._live.update(self._shown(), refresh=True)

    def preview(self, data: bytes) -> None:
        self._picture = picture.preview(data, self._console) or self._picture
        self._live.update(self._shown(), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _shown(self, text: str = "") -> Any:
        from rich.console import Group
        from rich.text import Text

        parts = [] if self._picture is None else [self._picture]
        return Group(*parts, self._bar if self._task is not None else Text(text, style="dim"))


class JsonLines:
    """Every event as one object per line, previews without their bytes; the last is the result with the `paths`."""

    def event(self, event: JobEvent) -> None:
        output.say(event)

    def step(self, step: Step) -> None:
        where = {"step": step.step, "steps": step.steps, "node": step.node}
        if step.preview is None:
            output.say({"event": "progress"} | where | ({"eta_s": step.eta_s} if step.eta_s is not None else {}))
        else:
            output.say({"event": "preview"} | where | {"type": step.preview_type, "size": len(step.preview)})

    async def end(self, pictures: Pictures, paths: Sequence[Path]) -> None:
        output.say({"event": "done"} | described(pictures) | {"paths": [str(path) for path in paths]})

    def close(self) -> None:
        pass


def described(pictures: Pictures) -> dict[str, Any]:
    """The flat result without the pictures' bytes."""
    found: Mapping[str, Any] = msgspec.to_builtins(pictures.facts)
    images = [_without_data(one) for one in pictures]
    about = {"job": pictures.job, "node": pictures.node, "name": pictures.name, "attempt": pictures.attempt}
    return about | dict(found) | {"images": images, "timings": pictures.timings}


def _without_data(one: Picture) -> dict[str, Any]:
    described: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(one.facts, data=None))
    return described


def _contents(paths: Sequence[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths if path.stat().st_size <= SHOWN_BYTES]
