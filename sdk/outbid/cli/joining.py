"""`outbid invite`, `revoke` and `rekey`: orders to the node of this machine, by its own credentials."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import click
import msgspec

from outbid.cli import output
from outbid.cli.running import JSON, STATE, duration, perform
from outbid.connection import Connection, local_node
from outbid_contracts import subjects
from outbid_contracts.admin import (
    InvitationsReply,
    InviteReply,
    InviteRequest,
    RekeyReply,
    RekeyRequest,
    RevokeReply,
    RevokeRequest,
)
from outbid_contracts.errors import OutbidError
from outbid_contracts.messages import Message
from outbid_contracts.places import LocalNode

RESTART_TIMEOUT_S = 20.0


@click.command()
@click.option("--valid", type=duration, default="10m", show_default=True, metavar="TIME", help="How long it is good.")
@click.option("--uses", type=click.IntRange(1, 1000), default=1, show_default=True, help="Machines that may use it.")
@click.option("--guest", is_flag=True, help="For a machine that is not yours: it may not invite.")
@click.option("--capability", "capabilities", multiple=True, metavar="NAME", help="Guest: offer only this.")
@click.option("--slots", type=click.IntRange(1), help="Guest: jobs at once, at most.")
@click.option("--guest-for", type=duration, metavar="TIME", help="Guest: leave after this time, e.g. 12h.")
@click.option("--qr", is_flag=True, help="Show the command as a QR code too.")
@click.option("--wait", is_flag=True, help="Stay and tell who joins, until the code is used up or expired.")
@STATE
@JSON
def invite(state: str | None, as_json: bool, qr: bool, wait: bool, **options: Any) -> None:
    """Open the mesh to another machine: print a short code for `outbid join` there."""
    asked = InviteRequest(
        valid_s=options["valid"],
        uses=options["uses"],
        guest=options["guest"],
        capabilities=options["capabilities"],
        slots=options["slots"],
        guest_s=options["guest_for"],
    )
    perform(_invite(state, asked, qr=qr, wait=wait, as_json=as_json))


@click.command()
@click.argument("name")
@STATE
@JSON
def revoke(name: str, state: str | None, as_json: bool) -> None:
    """Refuse the credentials made under NAME until now, on every node."""
    perform(_revoke(state, name, as_json=as_json))


@click.command()
@click.option("--without", multiple=True, metavar="NODE", help="Leave this node out (repeatable).")
@click.option("--yes", is_flag=True, help="Do not ask.")
@STATE
@JSON
def rekey(without: tuple[str, ...], yes: bool, state: str | None, as_json: bool) -> None:
    """Give the mesh a new key. Machines that are off now, and all credentials, are out and must be let in again."""
    if not yes:
        click.confirm("Machines that are off now must join again, and all credentials are void. Go on?", abort=True)
    perform(_rekey(state, without, as_json=as_json))


COMMANDS = (invite, revoke, rekey)


async def _invite(state: str | None, request: InviteRequest, *, qr: bool, wait: bool, as_json: bool) -> None:
    """Ask for a code, opening the node to the network first if it was closed; show it; perhaps wait for the joiner."""
    local, reply = await _invited(state, request)
    if as_json:
        output.say(msgspec.to_builtins(reply) | {"node": local.node})
    else:
        output.invitation(reply, guest=request.guest, qr=qr)
    if wait:
        await _watch(local, reply, as_json=as_json)


async def _revoke(state: str | None, name: str, *, as_json: bool) -> None:
    reply: RevokeReply = await _order(local_node(state), "revoke", RevokeRequest(name=name), RevokeReply)
    away = f"; {reply.silent} did not answer and learn it when they are back" if reply.silent else ""
    text = f"credentials of {name} are refused from now on, here and on {reply.told} other nodes{away}"
    output.say(reply) if as_json else output.line(text)


async def _rekey(state: str | None, without: tuple[str, ...], *, as_json: bool) -> None:
    reply: RekeyReply = await _order(local_node(state), "rekey", RekeyRequest(without=without), RekeyReply)
    if as_json:
        output.say(reply)
        return
    output.line(f"the mesh gets a new key; with this node go: {', '.join(reply.followed) or 'no others'}")
    if reply.left_out:
        output.line(f"out: {', '.join(reply.left_out)}")
    if reply.silent:
        output.line(f"did not answer and must join again: {', '.join(reply.silent)}")
    output.line("credentials made before (`outbid creds`) are void; machines that are off now must join again")


async def _invited(state: str | None, request: InviteRequest) -> tuple[LocalNode, InviteReply]:
    deadline = time.monotonic() + RESTART_TIMEOUT_S
    local = local_node(state)
    reply: InviteReply = await _order(local, "invite", request, InviteReply)
    while reply.restarting:
        if time.monotonic() > deadline:
            raise OutbidError("the node did not open itself to the network; its log says why")
        await asyncio.sleep(0.2)
        try:
            local = local_node(state)
            reply = await _order(local, "invite", request, InviteReply)
        except OutbidError:
            continue
    return local, reply


async def _watch(local: LocalNode, reply: InviteReply, *, as_json: bool) -> None:
    """Until the code is used up or expired."""
    seen: tuple[str, ...] = ()
    id = reply.code[:2]
    while True:
        now: InvitationsReply = await _order(local, "invitations", Message(), InvitationsReply)
        for name in now.joined[len(seen) :]:
            output.say({"joined": name}) if as_json else output.line(f"{name} joined")
        seen = now.joined
        if id not in now.open:
            return
        await asyncio.sleep(0.5)


async def _order(local: LocalNode, verb: str, message: Any, type: Any) -> Any:
    connection = Connection(local.url, local.creds)
    await connection.open()
    try:
        return await connection.request(subjects.admin(local.node, verb), message, type, timeout_s=15)
    finally:
        await connection.close()
