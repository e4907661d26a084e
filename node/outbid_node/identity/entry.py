"""Being let in by one of our own servers, once."""

from __future__ import annotations

import asyncio
import json

from outbid_node.identity import jwt
from outbid_node.identity.keys import SigningKey

PATIENCE_S = 10


async def enter(port: int, token: str, user: SigningKey) -> str | None:
    """Why the server on this loopback port does not let that user in; None if it does.

    Besides proving that it works, this makes the server look the mesh's account up. Until someone did, a reload has a
    moment in which the account is unknown, and whoever comes then, the leaf link too, is sent away for a second (seen
    with 2.15.1 in two starts of three).
    """
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                return await _knock(reader, writer, token, user)
            finally:
                writer.close()
    except (OSError, ValueError, KeyError, TimeoutError) as error:
        return str(error) or f"no answer within {PATIENCE_S} s"


async def _knock(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str, user: SigningKey
) -> str | None:
    """The opening of the NATS client protocol, and no more: nats-py swallows a cancellation while it connects."""
    info = json.loads((await reader.readline()).removeprefix(b"INFO "))
    signature = jwt.to_base64url(user.sign(info["nonce"].encode()))
    hello = {"verbose": False, "pedantic": False, "lang": "outbid", "version": "1", "jwt": token, "sig": signature}
    writer.write(b"CONNECT " + json.dumps(hello).encode() + b"\r\nPING\r\n")
    while line := await reader.readline():
        if line.startswith(b"PONG"):
            return None
        if line.startswith(b"-ERR"):
            return line.removeprefix(b"-ERR").decode(errors="replace").strip(" '\r\n")
    return "it hung up"
