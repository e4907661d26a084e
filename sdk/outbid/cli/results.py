"""`outbid result` and `outbid artifacts`: what a job gave, and the files that it made."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from outbid.artifacts import Artifact, named_in
from outbid.cli import output, picture, saving, watching
from outbid.mesh import Mesh
from outbid_contracts.errors import InvalidRequest, UnknownArtifact, UnknownJob

SHOWN_BYTES = 8 * 2**20
"""Pictures that are larger together are fetched only on request."""


async def show(mesh: Mesh, job: str, limit_s: float | None, out: str | None, *, as_json: bool) -> None:
    """The result to standard output; with `out` the files are saved, and their paths are the output."""
    found, files = await _result(mesh, job, limit_s)
    if out is not None:
        await _save(job, found, files, out, as_json=as_json)
    elif found is not None:
        watching.result(found, as_json=as_json)
    elif as_json:
        output.say([msgspec.structs.replace(one.facts, data=None) for one in files])
    else:
        output.artifacts([one.facts for one in files])
    if files and out is None and not as_json:
        await _show(files)
        click.echo(f"outbid result {job} -o FILE saves {'them' if len(files) > 1 else 'it'}", err=True)


async def _result(mesh: Mesh, job: str, limit_s: float | None) -> tuple[dict[str, Any] | None, list[Artifact]]:
    """The result, None where only the files are left of it, and the files that the job made."""
    try:
        found = await mesh.attach(job).result(limit_s)
    except (UnknownJob, InvalidRequest):  # forgotten, or interactive: then its result went to its caller
        files = await mesh.artifacts(job)
        if not files:
            raise
        return None, files
    return found, [Artifact(mesh, one) for one in named_in(found)]


async def _save(job: str, found: dict[str, Any] | None, files: Sequence[Artifact], out: str, *, as_json: bool) -> None:
    if not files:
        raise UnknownArtifact(f"job {job} made no files; `outbid result {job}` prints its result")
    paths = [str(path) for path in await saving.save(files, out)]
    if as_json:
        output.say({"job": job, "paths": paths})
        return
    for path in paths:
        output.line(path)


async def _show(files: Sequence[Artifact]) -> None:
    if sys.stdout.isatty() and sum(one.size for one in files) <= SHOWN_BYTES:
        picture.show(await asyncio.gather(*(one.read() for one in files)))


async def artifacts(mesh: Mesh, job: str | None, *, as_json: bool) -> None:
    found = [msgspec.structs.replace(one.facts, data=None) for one in await mesh.artifacts(job)]
    if as_json:
        output.say(found)
        return
    if not found:
        whose = f"job {job} has none" if job else "there are none"
        click.echo(f"{whose}; files are made by `outbid image`, and kept for some days", err=True)
        return
    names = {view.presence.node: view.presence.name for view in await mesh.nodes()}
    output.artifacts(found, names)
