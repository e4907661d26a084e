"""Artifacts wherever they are: which node holds one, and its content."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections import OrderedDict

from nats.aio.msg import Msg

from outbid_contracts import subjects
from outbid_contracts.artifacts import (
    FOUND,
    READ_BYTES,
    Artifact,
    ArtifactId,
    ArtifactList,
    FindArtifacts,
    ReadArtifact,
)
from outbid_contracts.codec import Format, encode
from outbid_contracts.errors import ChecksumMismatch, NodeUnreachable, OutbidError, PayloadTooLarge, UnknownArtifact
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Presence
from outbid_node.artifacts.incoming import hash_in
from outbid_node.artifacts.store import ArtifactStore
from outbid_node.client import Bus, reply_of
from outbid_node.registry import Registry

ANSWER_S = 1.0
"""How long a search waits for the slowest node."""

PIECE_S = 5.0
READ_TRIES = 5
HINTS = 10_000

LOST_S = 20.0
"""A node that went without a word so long ago may come back with what is looked for."""


class Reach:
    def __init__(self, *, me: NodeId, bus: Bus, registry: Registry, store: ArtifactStore) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self.store = store
        self._hints: OrderedDict[ArtifactId, Artifact] = OrderedDict()

    # -- finding -------------------------------------------------------------------------------------------------

    async def here(self, asked: FindArtifacts) -> ArtifactList:
        """Those that this node holds."""
        await self.store.until_ready()
        if asked.id is not None:
            kept = await self.store.find(asked.id)
            return ArtifactList(artifacts=(kept,) if kept else ())
        shelf = self.store.shelf
        return ArtifactList(artifacts=tuple(shelf.of_job(asked.job) if asked.job else shelf.newest(FOUND)))

    async def find(self, asked: FindArtifacts) -> ArtifactList:
        """Those of all nodes. By id: as soon as one has it."""
        own = await self._here_or_nothing(asked)
        if asked.id is not None and own:
            return ArtifactList(artifacts=tuple(own))
        others = [peer.presence for peer in self.registry if peer.presence.node != self.me]
        found, silent = await self._ask(others, asked)
        both = [*own, *found]
        if asked.id is None:
            both.sort(key=lambda artifact: artifact.made_ms, reverse=True)
            both = sorted(both, key=lambda artifact: artifact.id) if asked.job else both[:FOUND]
        return ArtifactList(artifacts=tuple(both), silent=tuple(silent))

    async def _here_or_nothing(self, asked: FindArtifacts) -> list[Artifact]:
        try:
            return list((await self.here(asked)).artifacts)
        except OutbidError:
            return []

    async def _ask(self, others: list[Presence], asked: FindArtifacts) -> tuple[list[Artifact], list[str]]:
        """What they hold, and the names of those that did not answer."""
        names = {asyncio.create_task(self._ask_one(other.node, asked)): other.name for other in others}
        found: list[Artifact] = []
        silent = []
        waiting = set(names)
        try:
            while waiting and not (asked.id is not None and found):
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if (answer := task.result()) is None:
                        silent.append(names[task])
                    else:
                        found += answer
        finally:
            for task in waiting:
                task.cancel()
        return found, silent

    async def _ask_one(self, node: NodeId, asked: FindArtifacts) -> list[Artifact] | None:
        try:
            reply: ArtifactList = await self.bus.call(
                subjects.node(node, "artifacts"), asked, ArtifactList, timeout_s=ANSWER_S
            )
        except (OutbidError, TimeoutError):
            return None
        return [artifact for artifact in reply.artifacts if artifact.node == node]

    async def locate(self, id: ArtifactId) -> Artifact:
        """Raises UnknownArtifact; its detail `away` names nodes that may have it."""
        if (kept := self.store.shelf.get(id)) is not None:
            return kept.artifact
        hint = self._hints.get(id)
        if hint is not None and hint.node in self.registry:
            return hint
        found = await self.find(FindArtifacts(id=id))
        if not found.artifacts:
            away = [*found.silent, *(peer.name for peer in self.registry.lost(LOST_S))]
            missing = f"; {', '.join(away)} did not answer" if away else ""
            raise UnknownArtifact(f"no node that answers has artifact {id!r}{missing}", away=away)
        self._hints[id] = found.artifacts[0]
        if len(self._hints) > HINTS:
            self._hints.popitem(last=False)
        return found.artifacts[0]

    # -- content -------------------------------------------------------------------------------------------------

    async def fetch(self, id: ArtifactId, most: int) -> bytes:
        """The whole of it. Raises UnknownArtifact, NodeUnreachable, PayloadTooLarge above `most` bytes,
        ChecksumMismatch, StorageFailed.
        """
        artifact = await self.locate(id)
        if artifact.size > most:
            raise PayloadTooLarge(
                f"artifact {id} has {artifact.size / 2**20:.1f} MiB; {most / 2**20:.0f} MiB are taken as input"
            )
        pieces = await (self._own(artifact) if artifact.node == self.me else self._others(artifact))
        digest = hashlib.sha256()
        data = b"".join(pieces)
        await hash_in(digest, data)
        if digest.hexdigest() != artifact.sha256:
            raise ChecksumMismatch(f"what came of artifact {id} is damaged: its SHA-256 differs")
        return data

    async def _own(self, artifact: Artifact) -> list[bytes]:
        return [piece async for _, piece in self.store.read(artifact.id, 0, artifact.size)]

    async def _others(self, artifact: Artifact) -> list[bytes]:
        pieces: list[bytes] = []
        for turn in itertools.count(1):
            had = sum(map(len, pieces))
            if had >= artifact.size:
                return pieces
            try:
                await self._read(artifact, had, pieces)
            except (TimeoutError, NodeUnreachable) as error:
                if turn >= READ_TRIES:
                    name = self.registry.name_of(artifact.node)
                    self._hints.pop(artifact.id, None)
                    raise NodeUnreachable(f"{name}, which holds artifact {artifact.id}, does not answer") from error
                await asyncio.sleep(0.2 * turn)
        raise AssertionError

    async def _read(self, artifact: Artifact, offset: int, pieces: list[bytes]) -> None:
        """Append what comes of one read, in order."""
        came: asyncio.Queue[Msg] = asyncio.Queue()
        inbox = self.bus.open_inbox(came.put_nowait)
        asked = ReadArtifact(id=artifact.id, offset=offset, length=READ_BYTES, via=self.me, format=Format.MSGPACK.value)
        try:
            self.bus.post(subjects.node(artifact.node, "read"), encode(asked), reply=inbox)
            while True:
                async with asyncio.timeout(PIECE_S):
                    msg = await came.get()
                headers = msg.headers or {}
                if "Outbid-Offset" not in headers:
                    if "Outbid-Size" not in headers:
                        reply_of(msg, None)  # raises what it says
                    return
                if int(headers["Outbid-Offset"]) == offset:
                    pieces.append(msg.data)
                    offset += len(msg.data)
        finally:
            self.bus.close_inbox(inbox)
