"""`outbid chaos`: a drill on the user's own mesh, with nodes of its own to kill."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import click

from outbid.cli import output
from outbid.cli.running import JSON, STATE, perform
from outbid.connection import local_node

if TYPE_CHECKING:
    from outbid.chaos.run import Recovery, Report

NODES = ("chaos-1", "chaos-2", "chaos-3")
JOBS_PER_S = 10
PAUSE_S = (0.3, 2.0)
LONGEST_S = 2.0
KILLS = {"runner": 65, "daemon": 35}

EXPLAINED = f"""\
This starts {len(NODES)} throw-away nodes of your mesh on this machine ({", ".join(NODES)}), hands in durable test
jobs at them and at your node, and kills runners and daemons (SIGKILL), of the throw-away nodes only. Your node and your
jobs are left alone, though the machine will be busy. At the end each job must have exactly one right result."""


@click.command()
@click.option("--minutes", type=click.FloatRange(0.05, 1440), default=5.0, show_default=True, help="How long.")
@click.option("--jobs", type=click.IntRange(1), help=f"How many jobs; default: {JOBS_PER_S} a second.")
@click.option("--seed", type=int, help="Choose as an earlier drill did.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@STATE
@JSON
def chaos(minutes: float, jobs: int | None, seed: int | None, yes: bool, state: str | None, as_json: bool) -> None:
    """Kill nodes while durable jobs run, and tell what was lost (it must be nothing).

    The nodes are started for it and thrown away. Exit code 1 if a job was lost or another promise broken.
    """
    if not yes:
        click.echo(EXPLAINED, err=True)
        click.confirm(f"Go on for {minutes:g} min?", abort=True, err=True)
    seconds = minutes * 60
    seed = Random().randrange(1_000_000) if seed is None else seed
    perform(_chaos(state, seconds, jobs or round(seconds * JOBS_PER_S), seed, as_json=as_json))


async def _chaos(state: str | None, seconds: float, jobs: int, seed: int, *, as_json: bool) -> None:
    local_node(state)
    with _ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="outbid-chaos-", ignore_cleanup_errors=True) as folder:
        report = await _drill(Path(folder), Path(state) if state else None, seconds, jobs, seed)
        evidence = None if report.clean else _keep(Path(folder))
    output.say(report) if as_json else _print(report)
    if evidence is not None:
        click.echo(f"the traces and logs are in {evidence}", err=True)
        sys.exit(1)


async def _drill(folder: Path, state: Path | None, seconds: float, jobs: int, seed: int) -> Report:
    from outbid import daemons
    from outbid.chaos import guests
    from outbid.chaos.door import Door
    from outbid.chaos.record import Notes
    from outbid.chaos.run import drill
    from outbid.chaos.storm import Storm
    from outbid.chaos.workload import Workload

    trace, notes = folder / "trace", Notes(folder / "notes")
    home = Door("local", state)
    nodes = guests.guests(NODES, folder, state, trace)
    doors = [home, *(Door(node.name, node.state) for node in nodes)]
    workload = Workload(doors, Random(seed), rate=jobs / seconds, longest_s=LONGEST_S)
    try:
        await guests.gather(nodes, home)
        click.echo(f"{len(nodes)} throw-away nodes are up; {jobs} jobs in {seconds:.0f} s, seed {seed}", err=True)
        storm = Storm(nodes, notes, Random(seed), pause_s=PAUSE_S, weights=KILLS)
        return await drill(workload, storm, [trace, notes.path], seed=seed, seconds=seconds, jobs=jobs)
    finally:
        await workload.abandon(home)
        await asyncio.to_thread(daemons.stop, nodes)


def _keep(folder: Path) -> Path:
    """What shows how a promise was broken, out of the folder that is removed."""
    kept = Path(tempfile.mkdtemp(prefix="outbid-chaos-evidence-"))
    for file in folder.iterdir():
        if file.is_file():
            shutil.copy2(file, kept)
    return kept


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """As Ctrl-C does: so that everything is cleaned up. Windows has no such signal."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if sys.platform == "win32" or task is None:
        yield
        return
    loop.add_signal_handler(signal.SIGTERM, task.cancel, "SIGTERM")
    try:
        yield
    except asyncio.CancelledError as cancelled:
        if cancelled.args != ("SIGTERM",):
            raise
        sys.exit(128 + signal.SIGTERM)
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


# -- for people --------------------------------------------------------------------------------------------------------


def _print(report: Report) -> None:
    hits = ", ".join(f"{count} {what}" for what, count in report.hits.items())
    output.line(f"jobs        {report.submitted} submitted, {report.acknowledged} acknowledged, {report.done} done")
    output.line(f"lost        {len(report.lost)}")
    output.line(f"killed      {report.kills} ({hits})")
    output.line(f"recovery    {_seconds(report.after_runner)} after a runner's death")
    output.line(f"            {_seconds(report.after_daemon)} after a daemon's death")
    for job in report.lost:
        output.line(f"lost: {job}")
    for answer in sorted(set(report.refused)):
        output.line(f"a submit was refused: {answer}")
    for violation in report.violations:
        output.line(str(violation))
    output.line("nothing was lost" if report.clean else f"not as promised; `--seed {report.seed}` tries the same again")


def _seconds(times: Recovery) -> str:
    if times.p50_s is None or times.p99_s is None:
        return "– (none)"
    return f"p50 {times.p50_s:.2f} s, p99 {times.p99_s:.2f} s ({times.count} jobs)"
