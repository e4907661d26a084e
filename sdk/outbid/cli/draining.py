"""`outbid drain`: take a node out of work, or back in."""

from __future__ import annotations

import click

from outbid.cli import output
from outbid.cli.running import JSON, STATE, run
from outbid.mesh import Mesh
from outbid_contracts import subjects
from outbid_contracts.admin import DrainReply, DrainRequest
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import NodeId

DRAIN_TIMEOUT_S = 30.0
"""It answers when what it ran is handed over."""


@click.command()
@click.argument("node")
@click.option("--undo", is_flag=True, help="Let it take work again.")
@STATE
@JSON
def drain(node: str, undo: bool, state: str | None, as_json: bool) -> None:
    """Let a node (by name or id) take no more work and hand over what it runs, until --undo or its next start."""

    async def order(mesh: Mesh) -> None:
        id = await find(mesh, node)
        subject = subjects.admin(id, "drain")
        reply: DrainReply = await mesh.connection.request(
            subject, DrainRequest(undo=undo), DrainReply, timeout_s=DRAIN_TIMEOUT_S
        )
        output.say(reply) if as_json else _tell(node, reply)

    run(state, order)


async def find(mesh: Mesh, node: str) -> NodeId:
    """By its id or its name. Raises OutbidError."""
    there = {view.presence.node: view.presence.name for view in await mesh.nodes()}
    if node in there:
        return NodeId(node)
    found = [id for id, name in there.items() if name == node]
    if len(found) > 1:
        raise OutbidError(f"{len(found)} nodes are called {node}; say which by its id: {', '.join(found)}")
    if not found:
        raise OutbidError(f"no node is called {node}; there are {', '.join(sorted(there.values()))}")
    return found[0]


def _tell(name: str, reply: DrainReply) -> None:
    if not reply.draining:
        output.line(f"{name} takes work again")
        return
    output.line(f"{name} takes no new work")
    if reply.handed_over:
        output.line(f"handed over: {', '.join(reply.handed_over)}")
    if reply.runs_on:
        output.line(f"still finishes: {', '.join(reply.runs_on)}")
