"""The commands about jobs that exist: `outbid jobs`, `why`, `result`, `artifacts`, `watch`, `cancel`, `retry`."""

from __future__ import annotations

from typing import Any, get_args

import click

from outbid.cli import explaining, job_listing, output, results, saving, watching
from outbid.cli.running import JSON, STATE, duration, run
from outbid.mesh import Mesh
from outbid_contracts.durable import Priority


@click.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--status", type=click.Choice(["waiting", "running", "done", "failed", "cancelled"]))
@STATE
@JSON
def jobs(limit: int, status: Any, state: str | None, as_json: bool) -> None:
    """Jobs of all nodes, the newest first, as far as their histories go back."""

    async def show(mesh: Mesh) -> None:
        job_listing.jobs(await mesh.jobs(limit=limit, state=status), await mesh.nodes(), as_json=as_json)

    run(state, show)


@click.command()
@click.argument("job")
@click.option("-v", "--verbose", is_flag=True, help="Show the tracebacks of failed attempts.")
@STATE
@JSON
def why(job: str, verbose: bool, state: str | None, as_json: bool) -> None:
    """The bid sheet of a job: who bid what, who declined, who won and why, how the scores come about, and what was
    promised against what it took. Also of jobs that ended long ago, as far as the history goes back.
    """

    async def show(mesh: Mesh) -> None:
        explaining.why(await mesh.job(job), await mesh.nodes(), verbose=verbose, as_json=as_json)

    run(state, show)


@click.command()
@click.argument("job")
@click.option("--wait", is_flag=True, help="Wait for its end, however long that takes.")
@click.option("--timeout", "timeout_s", type=duration, metavar="TIME", help="Wait for its end, at most so long.")
@click.option("-o", "out", metavar="FILE|FOLDER", help="Save the files that it made (-: to standard output).")
@STATE
@JSON
def result(job: str, wait: bool, timeout_s: float | None, out: str | None, state: str | None, as_json: bool) -> None:
    """The result of a durable job, from any node: the text of a chat, the list of files that it made, any other result
    as JSON. The files of an interactive job are found too, as long as they are kept.

    Exit code 1 if the job failed (with its error), 4 if it has not ended.
    """
    saving.check(out)
    limit_s = timeout_s if timeout_s is not None else None if wait else 0.0
    run(state, lambda mesh: results.show(mesh, job, limit_s, out, as_json=as_json))


@click.command()
@click.argument("job", required=False)
@STATE
@JSON
def artifacts(job: str | None, state: str | None, as_json: bool) -> None:
    """The files that a job made, or the newest of all jobs; `outbid result JOB -o FILE` saves them."""
    run(state, lambda mesh: results.artifacts(mesh, job, as_json=as_json))


@click.command()
@click.argument("job")
@STATE
@JSON
def watch(job: str, state: str | None, as_json: bool) -> None:
    """What has happened to a durable job so far, and what happens, until it ends. Ctrl-C leaves the job alone.

    With --json: one event per line; the last has the result. Exit code 1 if the job failed.
    """
    run(state, lambda mesh: watching.watch(mesh.attach(job), as_json=as_json))


@click.command()
@click.argument("job")
@STATE
@JSON
def cancel(job: str, state: str | None, as_json: bool) -> None:
    """Stop a job, wherever it runs."""

    async def show(mesh: Mesh) -> None:
        job_listing.cancelled(await mesh.cancel(job), as_json=as_json)

    run(state, show)


@click.command()
@click.argument("job")
@STATE
@JSON
def retry(job: str, state: str | None, as_json: bool) -> None:
    """Run a durable job that failed or was cancelled again, as a new job whose id is printed."""

    async def again(mesh: Mesh) -> None:
        new = await mesh.attach(job).retry()
        output.say({"job": new.id, "known": new.known}) if as_json else output.line(new.id)

    run(state, again)


@click.command()
@click.argument("job")
@click.argument("priority", type=click.Choice(get_args(Priority)))
@STATE
@JSON
def priority(job: str, priority: Any, state: str | None, as_json: bool) -> None:
    """Give a durable job that waits another place in the queue."""

    async def put(mesh: Mesh) -> None:
        record = await mesh.attach(job).prioritise(priority)
        output.say(record) if as_json else output.line(f"job {job} waits with priority {record.priority}")

    run(state, put)


COMMANDS = (jobs, why, result, artifacts, watch, cancel, retry, priority)
