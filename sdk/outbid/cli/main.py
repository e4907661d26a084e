"""The commands of `outbid`. Results go to standard output, everything said beside them to standard error.

Exit codes: 0 done, 1 the job or question failed, 2 wrong usage, 3 no node runs here, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import click

from outbid.cli import chatting, discovering, joining, output
from outbid.mesh import Mesh
from outbid_contracts.admin import InviteRequest
from outbid_contracts.errors import NodeUnreachable, NoNode, OutbidError
from outbid_contracts.policy import GOALS

STATE = click.option(
    "--state",
    metavar="DIR",
    envvar="OUTBID_STATE",
    help="State folder of the local node to talk to (OUTBID_STATE).",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Your own machines bid for your AI jobs."""


@cli.command(context_settings=_PASS_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def up(arguments: tuple[str, ...]) -> None:
    """Run this machine's node in the foreground (Ctrl-C stops it)."""
    _become(["up", *arguments])


@cli.command(context_settings=_PASS_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def config(arguments: tuple[str, ...]) -> None:
    """Print the configuration in force and where each value came from."""
    _become(["config", *arguments])


def _become(arguments: list[str]) -> None:
    """The daemon is a program of its own, so that no face imports it: replace this process by it."""
    command = [sys.executable, "-m", "outbid_node", *arguments]
    if sys.platform == "win32":
        sys.exit(subprocess.run(command, check=False).returncode)
    sys.stdout.flush()
    os.execv(sys.executable, command)


@cli.command()
@click.argument("prompt", required=False)
@click.option("--model", help="Name of the model; default: each node's own default.")
@click.option("--system", help="System message put before the prompt.")
@click.option("--policy", type=click.Choice(GOALS), help="What counts when the bids are ranked.")
@click.option("--deadline", "deadline_s", type=float, metavar="SECONDS", help="Give up when it takes longer.")
@click.option("--prefer", multiple=True, metavar="NODE", help="Put this node first if it bids (repeatable).")
@click.option("--avoid", multiple=True, metavar="NODE", help="Take this node only if no other bids (repeatable).")
@click.option("--max-tokens", type=int, help="Longest answer, in tokens.")
@click.option("--temperature", type=float)
@click.option("--top-p", type=float)
@click.option("--seed", type=int)
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text (repeatable).")
@click.option("--json-schema", metavar="FILE", help="Answer with JSON that fits this schema file.")
@click.option("--job", metavar="ID", help="Name the job yourself.")
@STATE
@JSON
def chat(prompt: str | None, state: str | None, as_json: bool, **options: Any) -> None:
    """Chat with a language model on whichever node makes the best bid. Reads the prompt from standard input if none
    is given.

    With --json: one object per line; the last has `job`, `node` and `text`.
    """
    text = prompt if prompt is not None else _from_stdin()
    _run(state, lambda mesh: chatting.chat(mesh, text, chatting.Options(**options), as_json=as_json))


def _from_stdin() -> str:
    if sys.stdin.isatty():
        raise click.UsageError("give a prompt, or pipe one in: echo 'why is the sky blue?' | outbid chat")
    return sys.stdin.read()


@cli.command()
@STATE
@JSON
def nodes(state: str | None, as_json: bool) -> None:
    """The machines of the mesh and what they offer."""

    async def show(mesh: Mesh) -> None:
        output.nodes(await mesh.nodes(), as_json=as_json)

    _run(state, show)


@cli.command()
@STATE
@JSON
def models(state: str | None, as_json: bool) -> None:
    """The models of the mesh: who has them, and which are loaded."""

    async def show(mesh: Mesh) -> None:
        output.models(await mesh.models(), as_json=as_json)

    _run(state, show)


@cli.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--status", type=click.Choice(["waiting", "running", "done", "failed", "cancelled"]))
@STATE
@JSON
def jobs(limit: int, status: Any, state: str | None, as_json: bool) -> None:
    """Recent jobs of all nodes, the newest first."""

    async def show(mesh: Mesh) -> None:
        output.jobs(await mesh.jobs(limit=limit, state=status), await mesh.nodes(), as_json=as_json)

    _run(state, show)


@cli.command()
@click.argument("job")
@STATE
@JSON
def why(job: str, state: str | None, as_json: bool) -> None:
    """The bid sheet of a job: who bid what, who declined, who won and why."""

    async def show(mesh: Mesh) -> None:
        output.why(await mesh.job(job), await mesh.nodes(), as_json=as_json)

    _run(state, show)


@cli.command()
@click.argument("job")
@STATE
@JSON
def cancel(job: str, state: str | None, as_json: bool) -> None:
    """Stop a job, wherever it runs."""

    async def show(mesh: Mesh) -> None:
        output.cancelled(await mesh.cancel(job), as_json=as_json)

    _run(state, show)


@cli.command()
@click.option("--valid", "valid", default="10m", show_default=True, metavar="TIME", help="How long it is good.")
@click.option("--uses", type=click.IntRange(1, 1000), default=1, show_default=True, help="Machines that may use it.")
@click.option("--guest", is_flag=True, help="For a machine that is not yours: it may not invite.")
@click.option("--capability", "capabilities", multiple=True, metavar="NAME", help="Guest: offer only this.")
@click.option("--slots", type=click.IntRange(1), help="Guest: jobs at once, at most.")
@click.option("--guest-for", metavar="TIME", help="Guest: leave after this time, e.g. 12h.")
@click.option("--qr", is_flag=True, help="Show the command as a QR code too.")
@click.option("--wait", is_flag=True, help="Stay and tell who joins, until the code is used up or expired.")
@STATE
@JSON
def invite(state: str | None, as_json: bool, qr: bool, wait: bool, **options: Any) -> None:
    """Open the mesh to another machine: print a short code for `outbid join` there."""
    asked = InviteRequest(
        valid_s=_duration(options["valid"], "--valid"),
        uses=options["uses"],
        guest=options["guest"],
        capabilities=options["capabilities"],
        slots=options["slots"],
        guest_s=_duration(options["guest_for"], "--guest-for") if options["guest_for"] else None,
    )
    _perform(joining.invite(state, asked, qr=qr, wait=wait, as_json=as_json))


@cli.command(context_settings=_PASS_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def join(arguments: tuple[str, ...]) -> None:
    """Make this machine a member of a mesh, by the code that `outbid invite` printed on another one."""
    _become(["join", *arguments])


@cli.command(context_settings=_PASS_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def leave(arguments: tuple[str, ...]) -> None:
    """Leave the mesh: forget its key on this machine."""
    _become(["leave", *arguments])


@cli.command(context_settings=_PASS_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def creds(arguments: tuple[str, ...]) -> None:
    """Make a .creds file for a person or program, which any NATS client takes."""
    _become(["creds", *arguments])


@cli.command()
@click.argument("name")
@STATE
@JSON
def revoke(name: str, state: str | None, as_json: bool) -> None:
    """Refuse the credentials made under NAME until now, on every node."""
    _perform(joining.revoke(state, name, as_json=as_json))


@cli.command()
@click.option("--without", multiple=True, metavar="NODE", help="Leave this node out (repeatable).")
@click.option("--yes", is_flag=True, help="Do not ask.")
@STATE
@JSON
def rekey(without: tuple[str, ...], yes: bool, state: str | None, as_json: bool) -> None:
    """Give the mesh a new key. Machines that are off now, and all credentials, are out and must be let in again."""
    if not yes:
        click.confirm("Machines that are off now must join again, and all credentials are void. Go on?", abort=True)
    _perform(joining.rekey(state, without, as_json=as_json))


@cli.command()
@click.option("--seconds", type=float, default=2.0, show_default=True, help="How long to listen.")
@STATE
@JSON
def discover(seconds: float, state: str | None, as_json: bool) -> None:
    """The nodes that announce themselves on this machine's networks, of any mesh. Needs no node here."""

    async def show() -> None:
        found = await discovering.discover(seconds)
        output.on_air(found, discovering.this_node(state), as_json=as_json)

    _perform(show())


@cli.command()
@JSON
def version(as_json: bool) -> None:
    """The version of Outbid."""
    number = importlib.metadata.version("outbid")
    output.say({"version": number}) if as_json else click.echo(f"outbid {number}")


def _duration(text: str, option: str) -> float:
    """Seconds of 90s, 30m, 12h, 7d."""
    found = re.fullmatch(r"(\d+)([smhd])", text)
    if found is None or int(found[1]) == 0:
        raise click.BadParameter(f"{text!r} is not a time; write 90s, 30m, 12h or 7d", param_hint=option)
    return float(int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]])


def _run(state: str | None, work: Callable[[Mesh], Coroutine[Any, Any, None]]) -> None:
    async def session() -> None:
        async with Mesh(state=state) as mesh:
            await work(mesh)

    _perform(session())


def _perform(work: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.run(work)
    except (NoNode, NodeUnreachable) as error:
        output.error(error)
        sys.exit(3)
    except OutbidError as error:
        output.error(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def main() -> None:
    cli(prog_name="outbid")


if __name__ == "__main__":
    main()
