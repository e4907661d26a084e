"""What tests of artifacts use: a plain NATS client of a node, with the credentials of its machine or others."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client

from outbid_contracts.artifacts import bucket_of
from outbid_contracts.errors import ErrorBody, OutbidError, from_body
from outbid_contracts.roles import inbox_prefix
from tests.fleet import NodeProcess

PATIENCE_S = 60


class Filing:
    """JSON requests and artifacts, as any program asks for them."""

    def __init__(self, nc: Client) -> None:
        self.nc = nc

    async def ask(self, subject: str, **body: Any) -> Any:
        """The reply; an error in it is raised."""
        msg = await self.nc.request(subject, json.dumps(body).encode(), timeout=PATIENCE_S)
        told = json.loads(msg.data)
        if msg.headers and "Outbid-Error" in msg.headers:
            raise from_body(ErrorBody(**told))
        return told

    async def make(self, *sizes: int, **body: Any) -> Any:
        """The result of `test.files`."""
        return await self.ask("mesh.test.files", sizes=sizes, **body)

    async def find(self, **asked: Any) -> list[str]:
        """Ids."""
        return [artifact["id"] for artifact in (await self.ask("mesh.artifacts.find", **asked)).get("artifacts", ())]

    async def read(self, id: str, offset: int = 0, length: int = 0, **more: Any) -> bytes:
        """What one question brings. Raises the error that came instead."""
        inbox = self.nc.new_inbox()
        heard = await self.nc.subscribe(inbox)
        asked = {"id": id, "offset": offset, "length": length} | more
        await self.nc.publish("mesh.artifacts.read", json.dumps(asked).encode(), reply=inbox)
        data = b""
        try:
            while True:
                msg = await heard.next_msg(PATIENCE_S)
                headers = msg.headers or {}
                if "Outbid-Offset" not in headers:
                    if "Outbid-Size" in headers:
                        return data
                    raise from_body(ErrorBody(**json.loads(msg.data))) if msg.data else OutbidError(str(headers))
                assert int(headers["Outbid-Offset"]) == offset + len(data)
                data += msg.data
        finally:
            await heard.unsubscribe()

    async def whole(self, id: str) -> bytes:
        """All of it, in as many reads as it takes."""
        data = b""
        while part := await self.read(id, len(data)):
            data += part
        return data

    async def stored(self, node: str, id: str) -> bytes:
        """By the object store of nats-py, which knows nothing of Outbid."""
        store = await self.nc.jetstream(domain=node).object_store(bucket_of(node))  # type: ignore[arg-type]
        return (await store.get(id)).data or b""

    async def subjects(self, node: str) -> dict[str, int]:
        """How many messages the bucket's stream has, by subject."""
        asked = json.dumps({"subjects_filter": ">"}).encode()
        msg = await self.nc.request(f"$JS.{node}.API.STREAM.INFO.OBJ_{bucket_of(node)}", asked, timeout=PATIENCE_S)  # type: ignore[arg-type]
        found: dict[str, int] = json.loads(msg.data)["state"].get("subjects") or {}
        return found

    async def objects(self, node: str) -> tuple[int, int]:
        """(objects, files of chunks) in its bucket."""
        found = await self.subjects(node)
        return sum(".M." in subject for subject in found), sum(".C." in subject for subject in found)


@asynccontextmanager
async def filing(node: NodeProcess, creds: str | None = None) -> AsyncIterator[Filing]:
    """At this node, by default as a local program."""
    file = creds or node.local.creds
    prefix = inbox_prefix(Path(file).read_text())
    nc = await nats.connect(
        node.local.url, user_credentials=file, inbox_prefix=prefix.encode(), max_reconnect_attempts=-1
    )
    try:
        yield Filing(nc)
    finally:
        await nc.close()
