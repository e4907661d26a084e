"""The commands of `outbid`. Results go to standard output, everything said beside them to standard error.

Exit codes: see `running`.
"""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import click

from outbid.cli import (
    calibrating,
    chatting,
    dashboard,
    discovering,
    draining,
    exporting,
    imaging,
    jobs,
    joining,
    output,
    pausing,
    pinning,
    policies,
    pulling,
    quieting,
    submitting,
    waking,
)
from outbid.cli.chaos import chaos
from outbid.cli.doctor import doctor
from outbid.cli.reporting import report
from outbid.cli.running import JSON, STATE, passed_on, run
from outbid.cli.sql import sql
from outbid.cli.what_if import what_if
from outbid.mesh import Mesh


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Your own machines bid for your AI jobs."""


@cli.command()
@click.argument("prompt", required=False)
@click.option("--model", help="Name of the model; default: each node's own default.")
@click.option("--system", help="System message put before the prompt.")
@policies.options
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
    asked = chatting.Options(policy=policies.taken(options), **options)
    run(state, lambda mesh: chatting.chat(mesh, text, asked, as_json=as_json))


def _from_stdin() -> str:
    if sys.stdin.isatty():
        raise click.UsageError("give a prompt, or pipe one in: echo 'why is the sky blue?' | outbid chat")
    return sys.stdin.read()


@cli.command()
@STATE
@JSON
def nodes(state: str | None, as_json: bool) -> None:
    """The machines of the mesh and what they offer, and those that are away."""

    async def show(mesh: Mesh) -> None:
        listed = await mesh.node_list()
        output.nodes(listed.nodes, listed.away, as_json=as_json)

    run(state, show)


@cli.command()
@JSON
def version(as_json: bool) -> None:
    """The version of Outbid."""
    number = importlib.metadata.version("outbid")
    output.say({"version": number}) if as_json else click.echo(f"outbid {number}")


for command in (
    passed_on("up", "Run this machine's node in the foreground (Ctrl-C stops it)."),
    passed_on("config", "Print the configuration in force and where each value came from."),
    passed_on("join", "Make this machine a member of a mesh, by the code that `outbid invite` printed on another one."),
    passed_on("leave", "Leave the mesh: forget its key on this machine."),
    passed_on("creds", "Make a .creds file for a person or program, which any NATS client takes."),
    imaging.image,
    submitting.submit,
    *jobs.COMMANDS,
    what_if,
    sql,
    report,
    exporting.export,
    draining.drain,
    calibrating.calibrate,
    pausing.pause,
    pausing.resume,
    pinning.pin,
    pinning.evict,
    quieting.quiet,
    waking.wake,
    *joining.COMMANDS,
    *pulling.COMMANDS,
    discovering.discover_command,
    doctor,
    dashboard.tui,
    chaos,
):
    cli.add_command(command)


def main() -> None:
    cli(prog_name="outbid")


if __name__ == "__main__":
    main()
