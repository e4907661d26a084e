"""`outbid discover`: which nodes announce themselves on the networks of this machine. It needs no node here."""

from __future__ import annotations

import os
from contextlib import suppress

import click

from outbid.cli import output
from outbid.cli.running import JSON, STATE, perform
from outbid.connection import local_node
from outbid.discovering import discover
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import NodeId


def this_node(state: str | os.PathLike[str] | None) -> NodeId | None:
    """The node with that state folder, if one runs here."""
    with suppress(OutbidError):
        return local_node(state).node
    return None


@click.command("discover")
@click.option("--seconds", type=float, default=2.0, show_default=True, help="How long to listen.")
@STATE
@JSON
def discover_command(seconds: float, state: str | None, as_json: bool) -> None:
    """The nodes that announce themselves on this machine's networks, of any mesh. Needs no node here."""

    async def show() -> None:
        found = await discover(seconds)
        output.on_air(found, this_node(state), as_json=as_json)

    perform(show())
