"""The newest checkpoint of each job that this node owns: where its next attempt goes on.

They are kept in memory, those of durable jobs on disk too. Whatever of them is lost costs time only: the job starts
again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol

import msgspec

from outbid_contracts.codec import encode
from outbid_contracts.errors import Cancelled, Draining, NodeLost
from outbid_contracts.ids import JobId
from outbid_contracts.messages import MAX_CHECKPOINT_BYTES, AttemptRecord, Award, Checkpoint, Job, Message
from outbid_node.settling import MAX_MESSAGE_BYTES

KEPT_BYTES = 128 * 2**20
"""Of all jobs together; beyond it those saved longest ago go first. A latent of SDXL has 256 KiB."""

BLAMELESS = frozenset({NodeLost.code, Draining.code, Cancelled.code})
"""Ends of an attempt that say nothing about the checkpoint it went on from."""


class Saved(Message, frozen=True, kw_only=True):
    """A checkpoint and where it comes from; also its form on disk.

    `created_ms` is the job's: an id may be used again when its job is forgotten. `origin` is the attempt that began
    without a checkpoint; those after it went on from this one or one before it.
    """

    job: JobId
    created_ms: int
    attempt: int
    origin: int
    checkpoint: Checkpoint


class Disk(Protocol):
    """Keeps those of durable jobs. Nothing here raises: what cannot be kept or read is lost."""

    def has(self, id: JobId) -> bool: ...

    def write(self, saved: Saved) -> None: ...

    async def read(self, id: JobId) -> Saved | None: ...

    def remove(self, id: JobId) -> None: ...


class Nowhere:
    """A disk that keeps nothing."""

    def has(self, id: JobId) -> bool:
        return False

    def write(self, saved: Saved) -> None:
        pass

    async def read(self, id: JobId) -> Saved | None:
        return None

    def remove(self, id: JobId) -> None:
        pass


class Checkpoints:
    def __init__(self, limit_bytes: int = KEPT_BYTES) -> None:
        self.disk: Disk = Nowhere()
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._kept: OrderedDict[JobId, Saved] = OrderedDict()

    def keep(self, saved: Saved, *, durable: bool) -> bool:
        """In the place of the one before; False if it is no good."""
        if not is_sound(saved.checkpoint):
            return False
        self._put(saved)
        if durable:
            self.disk.write(saved)
        return True

    async def of(self, job: Job, attempts: Iterable[AttemptRecord]) -> Saved | None:
        """What the next attempt may go on from, if anything."""
        saved = self._kept.get(job.id)
        if saved is None and self.disk.has(job.id):
            saved = await self.disk.read(job.id)
        if saved is None:
            return None
        if saved.created_ms != job.created_ms or not is_trusted(saved, attempts):
            self.forget(job.id)
            return None
        if job.id not in self._kept:
            self._put(saved)
        return saved

    def forget(self, id: JobId) -> None:
        """The job has ended, is another node's, or is to start again."""
        self._drop(id)
        if self.disk.has(id):
            self.disk.remove(id)

    def _put(self, saved: Saved) -> None:
        self._drop(saved.job)
        self._kept[saved.job] = saved
        self._bytes += len(saved.checkpoint.data)
        while self._bytes > self._limit_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, id: JobId) -> None:
        saved = self._kept.pop(id, None)
        if saved is not None:
            self._bytes -= len(saved.checkpoint.data)


def is_sound(checkpoint: Checkpoint) -> bool:
    """Small enough, and of a step that there is."""
    return len(checkpoint.data) <= MAX_CHECKPOINT_BYTES and 0 < checkpoint.step <= checkpoint.steps


def is_trusted(saved: Saved, attempts: Iterable[AttemptRecord]) -> bool:
    """Whether no attempt since its origin has failed by itself. One that has may have died of the checkpoint, so the
    job starts again rather than lose all its attempts to it. It is told from the record, so it is the same after a
    restart, and for an older checkpoint that the ledger brings back.
    """
    since = [attempt for attempt in attempts if attempt.attempt > saved.origin]
    return all(attempt.error is None or attempt.error.code in BLAMELESS for attempt in since)


def rest_of(job: Job, saved: Saved | None) -> Job:
    """What is left to be done, by the model that made the checkpoint; `job` itself without one."""
    if saved is None:
        return job
    checkpoint = saved.checkpoint
    left = 1 - checkpoint.step / checkpoint.steps
    work = {unit: amount * left for unit, amount in job.work.items()}
    return msgspec.structs.replace(job, work=work, model=job.model or checkpoint.model)


def going_on(award: Award, saved: Saved, model: str | None) -> Award | None:
    """The award with the checkpoint; None where the winner would use another model, or a message does not carry it."""
    if model != saved.checkpoint.model:
        return None
    whole = msgspec.structs.replace(award, job=rest_of(award.job, saved), checkpoint=saved.checkpoint)
    return whole if len(encode(whole)) <= MAX_MESSAGE_BYTES else None
