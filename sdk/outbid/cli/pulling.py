"""`outbid pull`, `rm` and `models`: the model files of the mesh."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from outbid.cli import output
from outbid.cli.running import JSON, STATE, run
from outbid.mesh import Mesh
from outbid_contracts.files import PullEvent

if TYPE_CHECKING:
    from rich.progress import Progress

ON = click.option("--on", metavar="NODE", help="The node that is to have it, by name or id; default: this machine's.")


@click.command()
@click.argument("source")
@click.option("--name", default="", help="What the model is to be called; default: as in the source.")
@ON
@click.option("--sha256", default="", metavar="HEX", help="Of the single file: refuse anything else.")
@click.option(
    "--variant", default="", metavar="NAME", help="Of a diffusers repository, e.g. fp16; full: the one without."
)
@click.option("--no-mesh", is_flag=True, help="Do not ask the other nodes for it first.")
@click.option("--cancel", is_flag=True, help="Stop fetching it, and throw away what came.")
@STATE
@JSON
def pull(source: str, state: str | None, as_json: bool, no_mesh: bool, **options: Any) -> None:
    """Fetch a model: from a node of the mesh that has it, else from where it is.

    SOURCE is hf:org/name (a diffusers pipeline, or a repository with one GGUF), hf:org/name:file.gguf,
    hf:org/name@revision, file:/path, or https://host/file.gguf.

    Ctrl-C stops watching; the node goes on. What is broken off goes on where it was when it is pulled again.
    """
    run(state, lambda mesh: _pull(mesh, source, as_json=as_json, mesh_first=not no_mesh, **options))


@click.command()
@click.argument("model")
@ON
@click.option("--yes", is_flag=True, help="Do not ask.")
@STATE
@JSON
def rm(model: str, on: str | None, yes: bool, state: str | None, as_json: bool) -> None:
    """Delete a model that was pulled."""
    if not yes:
        click.confirm(f"Delete the files of {model} on {on or 'this machine'}?", abort=True)

    async def remove(mesh: Mesh) -> None:
        removed = await mesh.remove_model(model, on=on)
        output.say(removed) if as_json else output.line(f"{model} is gone; that frees {output.size(removed.size)}")

    run(state, remove)


@click.command()
@STATE
@JSON
def models(state: str | None, as_json: bool) -> None:
    """The models of the mesh: who has them, which are loaded, and which are being pulled."""

    async def show(mesh: Mesh) -> None:
        output.models(await mesh.model_list(), as_json=as_json)

    run(state, show)


COMMANDS = (pull, rm, models)


async def _pull(mesh: Mesh, source: str, *, as_json: bool, mesh_first: bool, **options: Any) -> None:
    events = mesh.pull(source, mesh_first=mesh_first, **options)
    if options["cancel"]:
        async for _ in events:
            pass
        output.say({"cancelled": source}) if as_json else output.line(f"{source} is not being pulled any more")
        return
    if as_json:
        async for event in events:
            output.say(event)
        return
    try:
        await _watch(events)
    except asyncio.CancelledError:
        sys.stderr.write("outbid: the node goes on with it; the same command with --cancel stops it\n")
        raise


async def _watch(events: AsyncIterator[PullEvent]) -> None:
    told, began = "", time.monotonic()
    with _bar() as show:
        async for event in events:
            if event.state == "found" or (event.size and not told):
                told = _found(event)
                output.line(told)
            show(event)
            last = event
    seconds = time.monotonic() - began
    output.line(f"{last.name} is here ({output.size(last.size)}, {seconds:.1f} s)")
    if last.capabilities:
        output.line(f"for: {', '.join(last.capabilities)}")
    elif last.note:
        sys.stderr.write(f"outbid: {last.note}\n")


def _found(event: PullEvent) -> str:
    files = f"{event.files} files" if event.files != 1 else "1 file"
    return f"{event.name}: {files}, {output.size(event.size)}, licence: {event.licence or 'not stated'}"


@contextmanager
def _bar() -> Iterator[Callable[[PullEvent], None]]:
    """A progress bar on standard error where that is a terminal; else nothing is shown."""
    if not sys.stderr.isatty():
        yield lambda event: None
        return
    with _progress() as progress:
        task = progress.add_task("resolving", total=None, rate="")

        def show(event: PullEvent) -> None:
            what = f"from {', '.join(event.sources)}" if event.sources else event.state
            what = "verifying" if event.state == "verifying" else what
            rate = f"{event.bytes_s / 1e6:.1f} MB/s" if event.bytes_s else ""
            progress.update(task, description=what, total=event.size or None, completed=event.done, rate=rate)

        yield show


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
