"""`outbid quiet`: hours in which a node works for nobody else."""

from __future__ import annotations

import click

from outbid.cli import output
from outbid.cli.running import JSON, STATE, run
from outbid.mesh import Mesh
from outbid_contracts.admin import QuietReply


@click.command()
@click.argument("node")
@click.argument("hours", nargs=-1)
@click.option("--none", "none", is_flag=True, help="No quiet hours, whatever its configuration says.")
@click.option("--undo", is_flag=True, help="Go back to those of its configuration.")
@STATE
@JSON
def quiet(node: str, hours: tuple[str, ...], none: bool, undo: bool, state: str | None, as_json: bool) -> None:
    """Set the quiet hours of a node (by name or id), over restarts, instead of those of its configuration; without
    HOURS say which are in force. HOURS are local times there: 22:00-07:00, "Fri 20:00-24:00", "Sat-Sun 00:00-09:00".
    """
    if bool(hours) + none + undo > 1:
        raise click.UsageError("give HOURS, or --none, or --undo")

    async def order(mesh: Mesh) -> None:
        machine = mesh.node(node)
        reply = await (machine.unquiet() if undo else machine.quiet(hours if hours or none else None))
        output.say(reply) if as_json else _tell(node, reply)

    run(state, order)


def _tell(name: str, reply: QuietReply) -> None:
    output.line(f"quiet hours of {name}: {_listed(reply.hours)}")
    if reply.configured is not None:
        output.line(f"its configuration says: {_listed(reply.configured)}")


def _listed(hours: tuple[str, ...]) -> str:
    return ", ".join(hours) or "none"
