"""`outbid pause` and `outbid resume`: the person's own switch, for a game or a quiet evening."""

from __future__ import annotations

import time

import click

from outbid.cli import output
from outbid.cli.running import JSON, STATE, duration, run
from outbid.mesh import Mesh
from outbid_contracts.admin import PauseReply


@click.command()
@click.argument("node", required=False)
@click.option("--for", "for_s", type=duration, metavar="TIME", help="End by itself after 90s, 30m, 2h, 7d.")
@STATE
@JSON
def pause(node: str | None, for_s: float | None, state: str | None, as_json: bool) -> None:
    """Let this machine (or another one, by name or id) work for nobody else: what runs goes on elsewhere where it can,
    idle models leave memory. It lasts until `outbid resume`, also over restarts.
    """

    async def order(mesh: Mesh) -> None:
        reply = await mesh.node(node).pause(for_s)
        output.say(reply) if as_json else _tell(node or "this machine", reply)

    run(state, order)


@click.command()
@click.argument("node", required=False)
@STATE
@JSON
def resume(node: str | None, state: str | None, as_json: bool) -> None:
    """End `outbid pause`."""

    async def order(mesh: Mesh) -> None:
        reply = await mesh.node(node).resume()
        output.say(reply) if as_json else _tell(node or "this machine", reply)

    run(state, order)


def _tell(name: str, reply: PauseReply) -> None:
    if not reply.paused:
        output.line(f"{name} works for others again")
        return
    until = "until `outbid resume`" if reply.until_ms is None else f"until {_time(reply.until_ms)}"
    output.line(f"{name} works for nobody else {until}")
    if reply.handed_over:
        output.line(f"handed over: {', '.join(reply.handed_over)}")
    if reply.runs_on:
        output.line(f"still finishes: {', '.join(reply.runs_on)}")


def _time(unix_ms: int) -> str:
    return time.strftime("%a %H:%M", time.localtime(unix_ms / 1000))
