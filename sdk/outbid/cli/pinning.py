"""`outbid pin` and `outbid evict`: which models a node keeps in memory."""

from __future__ import annotations

import click

from outbid.cli import output
from outbid.cli.running import JSON, STATE, run
from outbid.mesh import Mesh
from outbid_contracts.admin import EvictReply, PinReply

CAPABILITY = click.option("--capability", help="Where a model serves several, e.g. llm.chat.")


@click.command()
@click.argument("node")
@click.argument("model")
@CAPABILITY
@click.option("--undo", is_flag=True, help="Let it leave memory again when others need the room.")
@STATE
@JSON
def pin(node: str, model: str, capability: str | None, undo: bool, state: str | None, as_json: bool) -> None:
    """Keep a model in the memory of a node (by name or id): it is loaded now and goes for no other, until --undo, also
    over restarts. Only while somebody plays there or has paused it, it makes room.
    """

    async def order(mesh: Mesh) -> None:
        machine = mesh.node(node)
        reply = await (machine.unpin if undo else machine.pin)(model, capability=capability)
        output.say(reply) if as_json else output.line(_pinned(node, reply))

    run(state, order)


def _pinned(name: str, reply: PinReply) -> str:
    if not reply.pinned:
        return f"{name} keeps {reply.model} no longer than it is used"
    return f"{name} keeps {reply.model} in memory{'; it is being loaded' if reply.loading else ''}"


@click.command()
@click.argument("node")
@click.argument("model")
@CAPABILITY
@STATE
@JSON
def evict(node: str, model: str, capability: str | None, state: str | None, as_json: bool) -> None:
    """Take a model out of the memory of a node (by name or id), once nothing runs on it. It is loaded again when a job
    wants it.
    """

    async def order(mesh: Mesh) -> None:
        reply = await mesh.node(node).evict(model, capability=capability)
        output.say(reply) if as_json else output.line(_evicted(node, reply))

    run(state, order)


def _evicted(name: str, reply: EvictReply) -> str:
    if not reply.was_warm:
        return f"{name} does not have {reply.model} in memory"
    when = "when its last job there is done" if reply.busy else "now"
    return f"{reply.model} leaves the memory of {name} {when}"
