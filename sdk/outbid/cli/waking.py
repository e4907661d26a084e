"""`outbid wake`: bring back a machine that sleeps."""

from __future__ import annotations

import click

from outbid.cli import output
from outbid.cli.running import JSON, STATE, run
from outbid.mesh import Mesh


@click.command()
@click.argument("node")
@STATE
@JSON
def wake(node: str, state: str | None, as_json: bool) -> None:
    """Send the magic packet (Wake-on-LAN) to a machine that was in the mesh and is away, by name or id."""

    async def order(mesh: Mesh) -> None:
        reply = await mesh.node(node).wake()
        if as_json:
            output.say(reply)
            return
        output.line(f"sent the magic packet for {reply.name} to {', '.join(reply.macs)}")
        output.line("it shows up in `outbid nodes` by itself, if it heard")

    run(state, order)
