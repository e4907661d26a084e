"""What a runner made becomes artifacts: kept by the job's owner or by a storage node, and named in the result."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from outbid_contracts.artifacts import INLINE_BYTES, Artifact, artifact_id, bucket_of
from outbid_contracts.errors import AttemptFailed, NoSpace, OutbidError, PayloadTooLarge, StorageFailed
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Job, Presence
from outbid_node.artifacts.incoming import hash_in
from outbid_node.artifacts.sending import send
from outbid_node.artifacts.shelf import Description
from outbid_node.artifacts.store import ArtifactStore
from outbid_node.client import Bus, NoResponders
from outbid_node.registry import Registry
from outbid_node.settling import KEEP_DURABLE_S

log = logging.getLogger(__name__)

KEEP_INTERACTIVE_S = 20.0
"""How long the owner of an interactive job is tried: its caller is gone by then."""

PAUSE_S = 5.0
"""The longest pause between two rounds of tries."""

PLAIN_TYPE = "application/octet-stream"


class Deliverer:
    def __init__(self, *, me: NodeId, bus: Bus, registry: Registry, store: ArtifactStore) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self.store = store

    async def deliver(
        self, job: Job, attempt: int, result: dict[str, Any], field: str, payloads: Sequence[bytes]
    ) -> dict[str, Any]:
        """The result with an Artifact for each payload, once all are on disk. Raises what kept one from it."""
        listed = result.get(field, ())
        if len(listed) != len(payloads):
            raise AttemptFailed(f"the runner lists {len(listed)} files in its result and gave {len(payloads)}")
        inline = not job.durable and sum(map(len, payloads)) <= INLINE_BYTES
        holders = self._holders(job, inline=inline)
        kept = []
        for number, (item, data) in enumerate(zip(listed, payloads, strict=True)):
            said = await _described(job, attempt, number, item, data)
            artifact = await self._kept(job, said, data, holders, inline=inline)
            kept.append(msgspec.structs.replace(artifact, data=data if inline else None))
        return result | {field: [msgspec.to_builtins(artifact, builtin_types=(bytes,)) for artifact in kept]}

    def _holders(self, job: Job, *, inline: bool) -> list[NodeId]:
        """Who is to keep them, the first choice first. Small ones of a waiting caller stay close to it."""
        stores = sorted((peer.presence for peer in self.registry if _stores(peer.presence)), key=self._nearness)
        others = [presence.node for presence in stores if presence.node != job.owner]
        return [job.owner, *others] if inline or len(others) < len(stores) else [*others, job.owner]

    def _nearness(self, presence: Presence) -> tuple[bool, int, str]:
        return presence.node != self.me, -(presence.resources.storage_free_mib or 0), presence.node

    async def _kept(self, job: Job, said: Description, data: bytes, holders: list[NodeId], *, inline: bool) -> Artifact:
        """Tries each holder, again and again while one of them is away. Raises the reason why none keeps it."""
        until = time.monotonic() + (KEEP_DURABLE_S if job.durable else KEEP_INTERACTIVE_S)
        pause_s = 0.25
        while True:
            refusal: OutbidError | None = None
            away = False
            for holder in list(holders):
                try:
                    artifact = await self._put(holder, said, data)
                except (NoResponders, TimeoutError):
                    away = True
                except OutbidError as error:
                    refusal = refusal if isinstance(refusal, NoSpace | PayloadTooLarge) else error
                    self._log_refusal(said, holder, error)
                else:
                    holders.remove(holder)  # the others of the same job to the same place
                    holders.insert(0, holder)
                    return artifact
            if refusal is not None and inline:
                return _unkept(said, job.owner)
            if refusal is not None and not away:
                raise refusal
            if time.monotonic() > until:
                raise refusal or StorageFailed(f"nobody who answers can keep artifact {said.id}")
            await asyncio.sleep(pause_s)
            pause_s = min(PAUSE_S, 1.5 * pause_s)

    async def _put(self, holder: NodeId, said: Description, data: bytes) -> Artifact:
        if holder == self.me:
            return await self.store.put(said, data)
        return await send(self.bus, holder, said, data)

    def _log_refusal(self, said: Description, holder: NodeId, error: OutbidError) -> None:
        name = self.registry.name_of(holder)
        log.warning("%s does not keep %s: %s", name, said.id, error, extra={"action": "artifact_refused"})


async def _described(job: Job, attempt: int, number: int, item: Any, data: bytes) -> Description:
    """Raises AttemptFailed if the runner's words about the file are not usable."""
    name, type = (item.get("name"), item.get("type")) if isinstance(item, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(type, str):
        raise AttemptFailed("the runner does not say the `name` and `type` of a file that it made")
    digest = hashlib.sha256()
    await hash_in(digest, data)
    return Description(
        id=artifact_id(job.id, attempt, number),
        owner=job.owner,
        name=re.sub(r"[\x00-\x1f\x7f/\\]+", "_", name)[:200] or "file",
        type=type if re.fullmatch(r"[\w.+-]{1,60}/[\w.+-]{1,60}", type) else PLAIN_TYPE,
        size=len(data),
        sha256=digest.hexdigest(),
        keep_s=job.keep_s,
    )


def _unkept(said: Description, owner: NodeId) -> Artifact:
    """It goes to the waiting caller all the same, and is not to be found later."""
    return Artifact(
        id=said.id,
        name=said.name,
        type=said.type,
        size=said.size,
        sha256=said.sha256,
        node=owner,
        bucket=bucket_of(owner),
    )


def _stores(presence: Presence) -> bool:
    return presence.keeps_artifacts and presence.state == "up" and not presence.trouble
