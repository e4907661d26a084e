"""Checkpoints of durable jobs on disk: bucket `CHECKPOINTS_<node>`, key `<job>`, the newest of each.

Nothing is synced or acknowledged: a power cut may lose the last moments, and then the job goes on from an older
checkpoint or starts again, which costs the work of some steps and nothing else. A ledger killed at a bad moment may
bring back a checkpoint that was replaced: of a job still to be done it is as good as any (`checkpoints.is_trusted`
judges it by the job's record); of one that has ended nobody asks, and it expires.
"""

from __future__ import annotations

import logging
from collections.abc import Container
from contextlib import suppress
from typing import Any

from outbid_contracts.codec import decode, encode
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import JobId, NodeId
from outbid_node.checkpoints import Saved, is_sound
from outbid_node.client import Bus
from outbid_node.durable.events import NO_ANSWER
from outbid_node.durable.stream import Stream

log = logging.getLogger(__name__)

KEPT_S = 7 * 86_400.0
"""After its last checkpoint a job that still waits starts again."""

KEPT_BYTES = 1024 * 2**20
"""Of all jobs together; beyond it the oldest go first."""


class CheckpointStream:
    """Implements `checkpoints.Disk`."""

    def __init__(self, bus: Bus, node: NodeId) -> None:
        self._bus = bus
        self._stream = Stream(bus, f"CHECKPOINTS_{node}")
        self._there: set[JobId] = set()

    async def open(self, wanted: Container[JobId]) -> None:
        """Make the stream, and find what the life before this one left for the `wanted` jobs; the rest goes."""
        try:
            await self._stream.ensure(self._config(), replace=True)
            info = await self._stream.ask(f"STREAM.INFO.{self._stream.name}", {"subjects_filter": ">"})
        except NO_ANSWER as error:
            log.warning("checkpoints cannot be kept: %s", error, extra={"action": "checkpoints_off"})
            return
        found = {JobId(subject.removeprefix(self._key(""))) for subject in info["state"].get("subjects") or ()}
        self._there |= {id for id in found if id in wanted}
        for id in found - self._there:
            self.remove(id)

    def has(self, id: JobId) -> bool:
        return id in self._there

    def write(self, saved: Saved) -> None:
        self._there.add(saved.job)
        self._bus.post(self._key(saved.job), encode(saved), headers={"Nats-Rollup": "sub"})

    async def read(self, id: JobId) -> Saved | None:
        try:
            stored = await self._stream.last(self._key(id))
            saved: Saved | None = decode(stored.data, Saved) if stored else None
        except (*NO_ANSWER, OutbidError) as error:
            log.warning("the checkpoint of %s is lost: %s", id, error, extra={"action": "checkpoint_unread", "job": id})
            return None
        return saved if saved is not None and saved.job == id and is_sound(saved.checkpoint) else None

    def remove(self, id: JobId) -> None:
        self._there.discard(id)
        self._bus.background(self._purge(id))

    async def _purge(self, id: JobId) -> None:
        with suppress(*NO_ANSWER):  # what stays expires
            await self._stream.ask(f"STREAM.PURGE.{self._stream.name}", {"filter": self._key(id)})

    # $KV.CHECKPOINTS_7k2f9qzt.01k3m2v7x0
    def _key(self, id: str) -> str:
        return f"$KV.{self._stream.name}.{id}"

    def _config(self) -> dict[str, Any]:
        return {
            "subjects": [self._key(">")],
            "storage": "file",
            "discard": "old",
            "max_age": int(KEPT_S * 1e9),
            "max_bytes": KEPT_BYTES,
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "no_ack": True,
            "persist_mode": "async",
        }
