"""What the bus says: JetStream of the ledger, the daemon, and through it the other nodes."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error, NoRespondersError

from outbid_contracts import subjects
from outbid_contracts.codec import Format, decode
from outbid_contracts.doctor import Seen, Vitals
from outbid_contracts.errors import ErrorBody, OutbidError, from_body
from outbid_contracts.ids import NodeId
from outbid_node.bus.config_text import MAX_FILE_MIB
from outbid_node.doctor.facts import Other, Store

CONNECT_S = 2.0
ANSWER_S = 1.5


class Refused(OutbidError):
    """The ledger does not let this program in."""

    code = "access_refused"


class Line:
    """A connection with the node's own credentials, which also work when the daemon does not."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @classmethod
    async def open(cls, url: str, creds: Path) -> Line:
        """Raises Refused with the reason. Does not rely on being cancelled: nats-py would swallow that."""
        client = Client()
        connecting = asyncio.ensure_future(
            client.connect(
                url,
                name="outbid doctor",
                user_credentials=str(creds),
                allow_reconnect=False,
                connect_timeout=int(CONNECT_S),
                error_cb=_ignore,
            )
        )
        await asyncio.wait([connecting], timeout=CONNECT_S + 0.5)
        if not connecting.done():
            connecting.cancel()
            raise Refused(f"no answer within {CONNECT_S:.0f} s")
        if error := connecting.exception():
            silent = isinstance(error, TimeoutError)
            why = f"no answer within {CONNECT_S:.0f} s" if silent else str(error).removeprefix("nats: ")
            raise Refused(why or type(error).__name__) from error
        return cls(client)

    async def close(self) -> None:
        with suppress(Exception):
            async with asyncio.timeout(0.5):
                await self._client.close()

    async def ask(self, subject: str, *, within_s: float = ANSWER_S) -> Msg:
        """Raises OutbidError with a few words about what happened instead of an answer."""
        try:
            return await self._client.request(subject, b"{}", timeout=within_s)
        except NoRespondersError as error:
            raise OutbidError("nobody answers that question") from error
        except TimeoutError as error:
            raise OutbidError(f"no answer within {within_s:g} s") from error
        except Error as error:
            raise OutbidError(str(error).removeprefix("nats: ")) from error

    async def read(self, subject: str, type: Any, *, within_s: float = ANSWER_S) -> Any:
        """The JSON answer of one of our own endpoints. Raises OutbidError, also the one that came as the answer."""
        msg = await self.ask(subject, within_s=within_s)
        if msg.headers and "Outbid-Error" in msg.headers:
            raise from_body(decode(msg.data, ErrorBody, Format.JSON))
        return decode(msg.data, type, Format.JSON)


async def _ignore(error: Exception) -> None:
    """What goes wrong is seen by who asks."""


async def look_at_store(line: Line) -> Store:
    try:
        said = json.loads((await line.ask("$JS.API.INFO")).data)
    except (OutbidError, ValueError) as error:
        return Store(error=str(error))
    if "error" in said:
        return Store(error=str(said["error"].get("description", "it answers with an error")))
    return read_store(said)


def read_store(said: dict[str, Any]) -> Store:
    """The answer of `$JS.API.INFO`. An account without a limit of its own has the server's."""
    limit = said.get("limits", {}).get("max_storage", -1)
    return Store(
        domain=said.get("domain", ""),
        used_mib=said.get("storage", 0) / 2**20,
        limit_mib=limit / 2**20 if limit > 0 else MAX_FILE_MIB,
        streams=said.get("streams", 0),
    )


async def ask_vitals(line: Line, node: NodeId) -> Vitals:
    """Raises OutbidError."""
    vitals: Vitals = await line.read(subjects.admin(node, "vitals"), Vitals)
    return vitals


async def ask_others(line: Line, sees: tuple[Seen, ...]) -> tuple[Other, ...]:
    return tuple(await asyncio.gather(*(_ask_other(line, seen) for seen in sees)))


async def _ask_other(line: Line, seen: Seen) -> Other:
    began, began_s = time.time(), time.perf_counter()
    try:
        vitals = await ask_vitals(line, seen.node)
    except OutbidError as error:
        return Other(node=seen.node, name=seen.name, version=seen.version, error=error.message)
    round_s = time.perf_counter() - began_s
    return Other(
        node=seen.node,
        name=seen.name,
        version=seen.version,
        vitals=vitals,
        offset_s=vitals.now_ms / 1000 - (began + round_s / 2),
        round_s=round_s,
    )
