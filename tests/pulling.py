"""What tests of model files share: a part of a node that pulls, without the node; and files that look like models."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

from outbid_contracts.files import ManifestQuery, ManifestReply, PieceReply, PieceRequest, PullEvent, PullRequest
from outbid_contracts.ids import NodeId
from outbid_node.files.door import Door
from outbid_node.files.finding import Holder
from outbid_node.files.pull import Means
from outbid_node.files.pulls import Pulls
from outbid_node.files.shelf import Shelf
from outbid_node.files.store import Store

KEY = b"k" * 32


def gguf(size: int, seed: int = 0) -> bytes:
    """Begins as a GGUF does; the rest differs from megabyte to megabyte."""
    block = os.urandom(1 << 20)
    body = b"".join(struct.pack("<QQ", n, seed) + block[16:] for n in range(-(-size // len(block))))
    return (b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + body)[:size]


def safetensors(size: int = 64) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + os.urandom(size)


class Node:
    """The pulling part of a node: its store, its door, and neighbours that are other such parts."""

    def __init__(self, folder: Path, name: str = "me", key: bytes = KEY) -> None:
        self.name = name
        self.neighbours: list[Node] = []
        self.unreachable = False
        """Nobody gets to its door: all goes by the bus."""
        self.store = Store(folder / name)
        self.shelf = Shelf()
        self.asked_by_bus = 0
        means = Means(
            me=NodeId(name),
            bus=cast(Any, _Bus(self)),
            store=self.store,
            shelf=self.shelf,
            finder=cast(Any, self),
            key=key,
            from_mesh=True,
            refresh=_nothing,
            usable=lambda path: ((), ""),
        )
        self.pulls = Pulls(means, serve=True)
        self.door = Door(key, self.shelf)
        self.port = 0

    @property
    def addresses(self) -> tuple[str, ...]:
        return () if self.unreachable else (f"127.0.0.1:{self.port}",)

    async def holders(self, source: Any, variant: str, sha256: str) -> list[Holder]:
        """As `Finder.holders`, without a bus in between."""
        found = []
        for it in self.neighbours:
            query = ManifestQuery(source=str(source), variant=variant, sha256=sha256)
            reply: ManifestReply = await it.pulls.manifest(query)
            if reply.manifest is not None:
                found.append(Holder(NodeId(it.name), it.name, it.addresses, reply.manifest, reply.whole, reply.digests))
        return found

    async def pull(self, source: str, **rest: Any) -> list[PullEvent]:
        return [event async for event in self.pulls.pull(PullRequest(source=source, **rest)).events()]


class _Bus:
    """Carries `piece` requests to the neighbour they are for."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def call(self, subject: str, message: PieceRequest, type: Any, *, timeout_s: float) -> PieceReply:
        neighbour = next(it for it in self._node.neighbours if it.name == subject.split(".")[2])
        neighbour.asked_by_bus += 1
        return await neighbour.pulls.piece(message)


async def _nothing() -> None:
    return None


@contextlib.asynccontextmanager
async def part(folder: Path, name: str = "me", key: bytes = KEY) -> AsyncIterator[Node]:
    node = Node(folder, name, key)
    await node.pulls.start()
    node.port = node.door.open("127.0.0.1", 0)
    try:
        yield node
    finally:
        node.door.close()
        await node.pulls.stop()
