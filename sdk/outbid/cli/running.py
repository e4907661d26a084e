"""What every command shares: its usual options, a connection to the local node, and exit codes.

0 done, 1 the job or question failed, 2 wrong usage, 3 no node runs here, 4 the job has not ended, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import click

from outbid.cli import output
from outbid.mesh import Mesh
from outbid_contracts.errors import NodeUnreachable, NoNode, NotDone, OutbidError

STATE = click.option(
    "--state",
    metavar="DIR",
    envvar="OUTBID_STATE",
    help="State folder of the local node to talk to (OUTBID_STATE).",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

CANCEL_TIMEOUT_S = 8.0

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def run(state: str | None, work: Callable[[Mesh], Coroutine[Any, Any, None]]) -> None:
    async def session() -> None:
        async with Mesh(state=state) as mesh:
            await work(mesh)

    perform(session())


def perform(work: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.run(work)
    except OutbidError as error:
        output.error(error)
        sys.exit(_exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _exit_code(error: OutbidError) -> int:
    match error:
        case NoNode() | NodeUnreachable():
            return 3
        case NotDone():
            return 4
        case _:
            return 1


async def call_off(mesh: Mesh, job: str) -> None:
    """Cancel it within a few seconds, whatever the node does: somebody pressed Ctrl-C."""
    with contextlib.suppress(OutbidError, TimeoutError):
        async with asyncio.timeout(CANCEL_TIMEOUT_S):
            await mesh.cancel(job)
            click.echo(f"\ncancelled job {job}", err=True)


def become(arguments: list[str], module: str = "outbid_node") -> None:
    """The daemon is a program of its own, so that no face imports it, and so is the dashboard: replace this process."""
    command = [sys.executable, "-m", module, *arguments]
    if sys.platform == "win32":
        sys.exit(subprocess.run(command, check=False).returncode)
    sys.stdout.flush()
    os.execv(sys.executable, command)


def passed_on(name: str, summary: str) -> click.Command:
    """A command that the daemon's own program carries out, options and help included."""

    @click.command(
        name,
        help=summary,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:
        become([name, *arguments])

    return command


def duration(text: str) -> float:
    """Seconds of 90s, 30m, 12h, 7d; a bare number is seconds. For `type=` of an option."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd]?)", text)
    if found is None or float(found[1]) == 0:
        raise click.BadParameter(f"{text!r} is not a time; write 90s, 30m, 12h or 7d")
    return float(found[1]) * _UNITS[found[2] or "s"]
