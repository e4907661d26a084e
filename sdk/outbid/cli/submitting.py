"""`outbid submit`: durable jobs, one from options or many from a file. Their ids go to standard output, alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from outbid.cli import output, params, policies, watching
from outbid.cli.running import JSON, STATE, duration, run
from outbid.jobs import Job
from outbid.mesh import Mesh
from outbid_contracts.durable import Priority, Submission
from outbid_contracts.errors import OutbidError
from outbid_contracts.submitting import parse_submission

_FOR_ONE = ("job", "params", "words")


def _moment(text: str) -> float:
    """Unix seconds of an ISO 8601 time; local unless it says otherwise."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise click.BadParameter(f"{text!r} is not a time; write 2026-11-22 02:00 or 2026-11-22T02:00Z") from error


@click.command()
@click.argument("capability", required=False)
@click.option("-p", "--param", "words", multiple=True, metavar="KEY=VALUE", help="A parameter (repeatable).")
@click.option("--params", metavar="JSON", help="All parameters as one JSON object; - reads it from standard input.")
@click.option("--file", metavar="FILE", help="Many jobs, one JSON object per line; - reads standard input.")
@click.option("--priority", type=click.Choice(get_args(Priority)), help="Who waits behind whom; default: normal.")
@click.option("--delay", "delay_s", type=duration, metavar="TIME", help="Start in 10m, 2h … at the earliest.")
@click.option("--not-before", type=_moment, metavar="WHEN", help='As "2026-11-22 02:00", local time.')
@click.option("--after", multiple=True, metavar="JOB", help="Start when that job is done (repeatable).")
@click.option("--max-attempts", type=click.IntRange(1, 1000), help="Give up after so many failed attempts.")
@click.option("--keep", "keep_s", type=duration, metavar="TIME", help="Keep the result so long; default: 7d.")
@policies.options
@click.option("--job", metavar="ID", help="Name the job yourself; submitting it again gives the same job.")
@click.option("--wait", is_flag=True, help="Wait for the result and print it.")
@STATE
@JSON
def submit(capability: str | None, wait: bool, state: str | None, as_json: bool, **options: Any) -> None:
    """Hand in a job that survives: it is on disk before its id is printed, and runs whatever becomes of this machine.

    \b
    outbid submit llm.chat --param prompt="why is the sky blue?" --param max_tokens=60
    outbid submit test.echo --params '{"text": "hello"}' --delay 10m
    outbid submit --file jobs.jsonl        # {"capability": "llm.chat", "params": {"prompt": "…"}} in each line

    A value is read as the type that the capability declares: 8 is a number for max_tokens and text for prompt;
    KEY:=JSON says it outright, and KEY=@FILE is the content of a file where that is wanted. Options beside --file hold
    for the lines that do not say otherwise.
    """
    if options["file"] is None and capability is None:
        raise click.UsageError("name a capability (`outbid nodes` shows which there are), or give --file")
    if options["file"] is not None and (given := [name for name in _FOR_ONE if options[name]]):
        raise click.UsageError(f"--{'param' if given[0] == 'words' else given[0]} is for a single job; not with --file")
    run(state, lambda mesh: _submit(mesh, capability, options, wait=wait, as_json=as_json))


async def _submit(mesh: Mesh, capability: str | None, options: Mapping[str, Any], *, wait: bool, as_json: bool) -> None:
    common = _common(capability, options)
    if options["file"] is not None:
        wanted = [parse_submission(common | line, f"line {n}") for n, line in _lines(options["file"])]
    else:
        assert capability is not None
        wanted = [parse_submission(common | {"params": await _params(mesh, capability, options)})]
    for job in (jobs := await _handed_in(mesh, wanted)):
        _tell(job, quiet=wait, as_json=as_json)
    if wait:
        await _results(jobs, as_json=as_json)


async def _handed_in(mesh: Mesh, wanted: Sequence[Submission]) -> list[Job]:
    """Where that ends halfway, the ids of those that went before are printed all the same."""
    try:
        return await mesh.submit_many(wanted)
    except OutbidError as error:
        for id in error.detail.get("accepted", ()):
            output.line(id)
        raise


def _common(capability: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Submission` that the options give."""
    policy = msgspec.to_builtins(policies.policy_of(options))
    names = ("job", "priority", "delay_s", "not_before", "after", "max_attempts", "keep_s")
    fields = {name: options[name] for name in names if options[name]}
    fields |= {"capability": capability} if capability else {}
    return fields | ({"policy": policy} if policy else {})


async def _params(mesh: Mesh, capability: str, options: Mapping[str, Any]) -> dict[str, Any]:
    given = json_object(options["params"]) if options["params"] else {}
    words = options["words"]
    schema = await params.schema_of(mesh.connection, capability) if words else None
    return given | params.read(words, schema)


def json_object(text: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(sys.stdin.buffer.read() if text == "-" else text)
    except msgspec.DecodeError as error:
        raise click.BadParameter(f"it is not JSON: {error}", param_hint="--params") from error
    if not isinstance(found, dict):
        raise click.BadParameter("it must be a JSON object", param_hint="--params")
    return found


def _lines(file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects in a file of JSON lines. Raises click.BadParameter with the number of the line."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise click.BadParameter(f"{file} cannot be read: {error.strerror}", param_hint="--file") from error
    for n, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield n, msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise click.BadParameter(f"line {n} of {file}: {error}", param_hint="--file") from error


def _tell(job: Job, *, quiet: bool, as_json: bool) -> None:
    """The id to standard output, or beside the result to standard error."""
    if as_json and not quiet:
        output.say({"job": job.id, "owner": job.owner, "known": job.known, "note": job.note})
        return
    notes = ["it had been submitted before"] if job.known else []
    notes += [job.note] if job.note else []
    if quiet:
        click.echo(f"job {job.id}{': ' if notes else ''}{'; '.join(notes)}", err=True)
        return
    output.line(job.id)
    if notes:
        click.echo(f"outbid: {job.id}: {'; '.join(notes)}", err=True)


async def _results(jobs: list[Job], *, as_json: bool) -> None:
    """In the order of the jobs. Of several, those that failed are told when the others are out."""
    failed = 0
    for job in jobs:
        try:
            watching.result(await job.result(), as_json=as_json or len(jobs) > 1)
        except OutbidError as error:
            if len(jobs) == 1:
                raise
            failed += 1
            click.echo(f"outbid: {job.id}: {error.message}", err=True)
    if failed:
        raise OutbidError(f"{failed} of {len(jobs)} jobs failed")
