"""The joining side: find an inviter, prove the code to it, get the mesh key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from outbid_node.joining.channel import Channel, Exchange, Hello, JoinFailed, Welcome
from outbid_node.joining.code import JoinCode
from outbid_node.joining.inviter import PROTOCOL, Applicant, Grant, Joined

CONNECT_TIMEOUT_S = 5.0


async def join(
    code: JoinCode, host: str, port: int, *, node: str, name: str, version: str, store: Callable[[Grant], None]
) -> Grant:
    """Join through the inviter at `host:port`; `store` keeps what was granted before the inviter counts the use.

    Raises WrongCode, or JoinFailed with the inviter's reason.
    """
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError) as error:
        raise JoinFailed(f"nothing answers at {host}:{port}; is `outbid invite` still open there?") from error
    channel = Channel(reader, writer)
    try:
        await _agree(channel, code)
        applicant = Applicant(node=node, name=name, version=version, time_s=time.time())
        await channel.send(applicant)
        grant = await _granted(channel)
        store(grant)
        await channel.send(Joined(node=node))
        return grant
    finally:
        await channel.close()


async def _agree(channel: Channel, code: JoinCode) -> None:
    exchange = Exchange(code.secret, code.id, joiner=True)
    await channel.send(Hello(v=PROTOCOL, invitation=code.id, spake=await exchange.start()))
    welcome: Welcome = await channel.receive(Welcome)
    if welcome.refusal:
        raise JoinFailed(welcome.refusal)
    channel.key(await exchange.finish(welcome.spake), joiner=True)


async def _granted(channel: Channel) -> Grant:
    try:
        grant: Grant = await channel.receive(Grant)
    except JoinFailed as error:
        # An inviter with another code cannot read us and hangs up: to us that looks like a closed connection.
        raise JoinFailed("the code was not accepted; check it, or ask for a new one with `outbid invite`") from error
    if grant.refusal:
        raise JoinFailed(grant.refusal)
    return grant
