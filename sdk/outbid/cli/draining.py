"""`outbid drain`: take a node out of work, or back in."""

from __future__ import annotations

import click

from outbid.cli import output
from outbid.cli.running import JSON, STATE, run
from outbid.mesh import Mesh
from outbid_contracts.admin import DrainReply


@click.command()
@click.argument("node")
@click.option("--undo", is_flag=True, help="Let it take work again.")
@STATE
@JSON
def drain(node: str, undo: bool, state: str | None, as_json: bool) -> None:
    """Let a node (by name or id) take no more work and hand over what it runs, until --undo or its next start."""

    async def order(mesh: Mesh) -> None:
        machine = mesh.node(node)
        reply = await (machine.undrain() if undo else machine.drain())
        output.say(reply) if as_json else _tell(node, reply)

    run(state, order)


def _tell(name: str, reply: DrainReply) -> None:
    if not reply.draining:
        output.line(f"{name} takes work again")
        return
    output.line(f"{name} takes no new work")
    if reply.handed_over:
        output.line(f"handed over: {', '.join(reply.handed_over)}")
    if reply.runs_on:
        output.line(f"still finishes: {', '.join(reply.runs_on)}")
