"""`outbid chat`: the answer streams to standard output, what happens beside it to standard error."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

from outbid.chat import Reply
from outbid.cli import output
from outbid.cli.running import call_off
from outbid.mesh import Mesh
from outbid_contracts.events import AttemptLost, Awarded, JobEvent, Loading, Waiting
from outbid_contracts.policy import Policy


@dataclass(frozen=True, slots=True)
class Options:
    model: str | None
    system: str | None
    policy: Policy
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    stop: tuple[str, ...]
    json_schema: str | None
    job: str | None

    def params(self) -> dict[str, Any]:
        names = ("model", "max_tokens", "temperature", "top_p", "seed")
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.stop:
            chosen["stop"] = list(self.stop)
        if self.json_schema is not None:
            chosen["json_schema"] = _schema(self.json_schema)
        return chosen


async def chat(mesh: Mesh, prompt: str, options: Options, *, as_json: bool) -> None:
    show = _JsonLines() if as_json else _Terminal()
    asked: Any = prompt
    if options.system is not None:
        asked = [{"role": "system", "content": options.system}, {"role": "user", "content": prompt}]
    stream = mesh.chat(asked, policy=options.policy, job=options.job, on_event=show.event, **options.params())
    try:
        async for chunk in stream:
            show.text(chunk.text)
        show.end(await stream.reply())
    except (asyncio.CancelledError, KeyboardInterrupt):
        await asyncio.shield(call_off(mesh, stream.job))
        raise
    finally:
        show.close()


class _Terminal:
    """Text as it comes; a spinner with what is going on until the first of it."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status("asking the mesh for bids …") if self._console.is_terminal else None
        if self._status:
            self._status.start()

    def event(self, event: JobEvent) -> None:
        match event:
            case Awarded():
                self._say(f"{event.name} won ({event.why})" if event.why else f"{event.name} won")
            case Waiting():
                self._say(f"waiting for a free slot: {event.reason}")
            case Loading():
                part = f" {event.fraction:.0%}" if event.fraction is not None else ""
                self._say(f"loading {event.model or 'the model'}{part} …")
            case AttemptLost():
                self.close()
                again = "; another node takes over" if event.retry else ""
                self._console.print(f"\n[yellow]{event.error.message}{again}[/yellow]")
            case _:
                pass

    def text(self, text: str) -> None:
        self.close()
        sys.stdout.write(text)
        sys.stdout.flush()

    def end(self, reply: Reply) -> None:
        self.close()
        sys.stdout.write("\n")
        sys.stdout.flush()
        speed = reply.timings.get("tokens_per_s")
        facts = [reply.name, reply.model, f"{reply.usage.completion_tokens} tokens"]
        facts += [f"{speed:.0f} tok/s"] if speed else []
        facts += ["cut at max_tokens"] if reply.finish_reason == "length" else []
        self._console.print(f"[dim]— {' · '.join(facts)} · outbid why {reply.job}[/dim]", soft_wrap=True)

    def close(self) -> None:
        if self._status:
            self._status.stop()
            self._status = None

    def _say(self, text: str) -> None:
        if self._status:
            self._status.update(text)


class _JsonLines:
    """Every event as one object per line; the last is the whole reply."""

    def event(self, event: JobEvent) -> None:
        output.say(event)

    def text(self, text: str) -> None:
        output.say({"event": "chunk", "text": text})

    def end(self, reply: Reply) -> None:
        output.say({"event": "done"} | msgspec.to_builtins(reply))

    def close(self) -> None:
        pass


def _schema(file: str) -> dict[str, Any]:
    try:
        schema = json.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{file} is not a readable JSON file: {error}", param_hint="--json-schema") from error
    if not isinstance(schema, dict):
        raise click.BadParameter(f"{file} must hold a JSON object", param_hint="--json-schema")
    return schema
