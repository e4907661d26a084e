"""What the caller of a streamed job has got, so that a stream that loses its node goes on from there on another one.

Chunks go from the winner straight to the caller. The owner hangs on the same ledger as the caller as a rule, so by
hearing the caller's inbox it sees the same messages in the same order; its own worker tells it directly.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from outbid_contracts.capability import Capability
from outbid_contracts.codec import Format, decode, encode
from outbid_contracts.errors import AttemptFailed, OutbidError
from outbid_contracts.events import AttemptLost, Chunk, JobEvent
from outbid_contracts.messages import Bid, Job
from outbid_contracts.pieces import Pieces
from outbid_contracts.requests import Resume
from outbid_node.auction import ASK_WORTH_S
from outbid_node.client import Bus

log = logging.getLogger(__name__)

LIMIT_BYTES = 4 * 2**20
"""What is kept of one stream; a longer one that loses its node goes on from there."""

CATCH_UP_S = 1.0
"""How long the ledger may take to hand over what a lost attempt sent last, and the word that it is lost."""

RESUMED_ABOVE = 100
"""How far above what the caller knows a new owner numbers its attempts: the old one may have awarded some more."""


class Delivered:
    """The pieces of one job, and how to go on after them.

    `begin` before each award, `end` when the attempt is lost, `close` when the job ends. Only chunks of the attempt
    that `begin` named count, and none after `end`: what a frozen node sends when it wakes up is nobody's.
    """

    def __init__(self, capability: Capability, bus: Bus, resume: Resume | None = None) -> None:
        """`resume`: what the caller has from an owner before this one."""
        resume = resume or Resume()
        self.capability = capability
        self.bus = bus
        self.pieces = Pieces(resume.chunks, resume.attempt)
        self.model = resume.model
        """Which wrote them. Another one does not go on with its text."""
        self.base = 0
        """The current attempt goes on after so many pieces."""
        self.hole = False
        """Some of the current attempt's pieces were lost on the way, or were too many to keep."""
        self._attempt = 0
        self._bases: list[tuple[int, int]] = []
        self._bytes = sum(map(_size, resume.chunks))
        self._job: Job | None = None
        self._tap: Subscription | None = None
        self._over = asyncio.Event()
        self._held: list[Chunk] | None = None
        self._relay: Callable[[Chunk], None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, capability: Capability, bus: Bus, job: Job, resume: Resume | None = None) -> Delivered | None:
        """None for a job whose stream cannot go on elsewhere, or that does not stream."""
        can = capability.resume == "tokens" and job.reply and not set(job.reply) & {"*", ">"}
        return cls(capability, bus, resume) if can else None

    # -- going on ---------------------------------------------------------------------------------------------------

    def rest(self, job: Job) -> Job:
        """The job that is left to be done, by the model that began it; `job` itself if it must start (again)."""
        if not self.pieces.data:
            return job
        try:
            params = self.capability.resume_params(job.params, self.pieces.data)
            if params is None:
                return job
            work = self.capability.work(msgspec.convert(params, self.capability.params))
        except Exception:  # third-party code
            log.exception("%s cannot say how to go on", job.capability, extra={"action": "resume_failed"})
            return job
        return msgspec.structs.replace(job, params=params, work=work, model=job.model or self.model)

    def whole(self, job: Job) -> dict[str, Any] | None:
        """The result, if the caller has all of it already."""
        if not self.pieces.data:
            return None
        try:
            return self.capability.resume_whole(job.params, self.pieces.data, self.model)
        except Exception:  # third-party code
            log.exception("%s cannot say whether it is whole", job.capability, extra={"action": "resume_failed"})
            return None

    def joined(self, result: dict[str, Any], after: int) -> dict[str, Any]:
        """The whole result from that of an attempt that went on after so many pieces. Raises AttemptFailed; the next
        attempt then starts from the beginning.
        """
        if not after:
            return result
        before, why = self.pieces.data[:after], "some of the pieces before it are lost"
        try:
            if len(before) == after:
                return self.capability.resume_result(result, before)
        except Exception as error:  # third-party code
            log.exception("%s cannot join its pieces", self.capability.name, extra={"action": "resume_failed"})
            why = repr(error)
        self.pieces.data.clear()
        raise AttemptFailed(f"the parts of the result do not fit together: {why}")

    async def begin(self, job: Job, attempt: int, bid: Bid, *, here: bool) -> Job:
        """What to award; from now on this attempt's chunks count."""
        rest = self.rest(job)
        if self.pieces.data and self.model not in (None, bid.model):
            rest = job
        self.base = 0 if rest is job else len(self.pieces.data)
        self.model = bid.model
        self.pieces.award(attempt, self.base)
        self._bases.append((attempt, self.base))
        self._bytes = sum(map(_size, self.pieces.data))
        self._job, self._attempt, self.hole, self._relay = job, attempt, False, None
        self._over.clear()
        if not here and bid.finish_s >= ASK_WORTH_S:
            await self._listen(str(job.reply))
        return rest

    async def end(self) -> None:
        """The caller was just told that the attempt is lost. What comes before that word counts, nothing after it; it
        is heard here as it is there.
        """
        if self._tap is not None and self._relay is None and self._attempt:
            try:
                async with asyncio.timeout(CATCH_UP_S):
                    await self._over.wait()
            except TimeoutError:
                log.info("the ledger is slow or away", extra={"action": "catch_up_failed"})
        self._attempt = 0

    def close(self) -> None:
        """The job has ended."""
        self._attempt, self._relay = 0, None
        if self._tap is not None:
            self._closing = asyncio.create_task(_unsubscribe(self._tap))
            self._tap = None

    # -- hearing ----------------------------------------------------------------------------------------------------

    def heard(self, chunk: Chunk) -> None:
        """A piece went out to the caller."""
        if self._held is not None:
            self._held.append(chunk)
        elif chunk.attempt == self._attempt:
            self._take(chunk)
            if self._relay is not None:
                self._relay(chunk)

    def _take(self, chunk: Chunk) -> None:
        taken = self.pieces.take(chunk) if self._bytes < LIMIT_BYTES else "hole"
        if taken == "taken":
            self._bytes += _size(chunk.data)
        self.hole = self.hole or taken == "hole"

    async def _listen(self, subject: str) -> None:
        """Open before the award is sent, so no piece can come before it."""
        if self._tap is not None and self._tap.subject != subject:
            await _unsubscribe(self._tap)
            self._tap = None
        if self._tap is None:
            self._tap = await self.bus.subscribe(subject, self._on_message)

    async def _on_message(self, msg: Msg) -> None:
        job, tag = self._job, msg.data[:24]  # the tag stands first
        if job is None or (b"chunk" not in tag and b"lost" not in tag):
            return
        try:
            event = decode(msg.data, JobEvent, Format.MSGPACK if job.format == Format.MSGPACK else Format.JSON)
        except OutbidError:
            return
        if isinstance(event, Chunk) and event.job == job.id:
            self.heard(event)
        elif isinstance(event, AttemptLost) and event.attempt == self._attempt:
            self._attempt = 0
            self._over.set()

    # -- an owner or a caller that comes back -----------------------------------------------------------------------

    def load(self, events: Iterable[JobEvent]) -> None:
        """Take in what was kept elsewhere, after a restart of the owner."""
        self.pieces.replay(events)
        self._bytes = sum(map(_size, self.pieces.data))

    async def rejoin(
        self, job: Job, attempt: int, base: int, read: Callable[[], Awaitable[Sequence[JobEvent]]]
    ) -> None:
        """Go on counting the chunks of an attempt that outlived its owner's restart: `read` gives the events kept, and
        what arrives meanwhile comes after them. `base` is that of its award.
        """
        self._job, self._held, self.base = job, [], base
        await self._listen(str(job.reply))
        try:
            await self.bus.flush()  # else a piece could come after what is read and before the ledger knows of us
            self.load(await read())
        finally:
            held, self._held = self._held, None
            self._attempt = attempt
            self._bases.append((attempt, base))
            for chunk in held:
                self.heard(chunk)

    def forward(self, resume: Resume, send: Callable[[Chunk], None]) -> int | None:
        """The caller is elsewhere now: `send` it what it lacks, and all that comes for the old place. Returns after
        how many of its pieces that goes on; None if some are not here either.
        """
        have = len(resume.chunks)
        start = min([have, *(base for attempt, base in self._bases if attempt > resume.attempt)])
        if self.hole or start > len(self.pieces.data):
            return None
        self._relay = send
        return start

    def replay(self, start: int) -> None:
        """Send the pieces from number `start` on to where `forward` said."""
        assert self._job is not None
        if self._relay is not None:
            for seq, data in enumerate(self.pieces.data[start:], start):
                self._relay(Chunk(job=self._job.id, seq=seq, attempt=self.pieces.attempt, data=data))

    def believe(self, resume: Resume) -> None:
        """What the caller has is what counts; the current attempt's pieces do not any more."""
        self._attempt = 0
        self.pieces = Pieces(resume.chunks, max(resume.attempt, self.pieces.attempt))
        self._bytes = sum(map(_size, resume.chunks))


def floor_of(resume: Resume | None) -> int:
    """The attempts of an owner that takes up another's stream are numbered above it, so that they are news to the
    caller, and to a node that runs the other's.
    """
    return resume.attempt + RESUMED_ABOVE if resume and (resume.attempt or resume.chunks) else 0


def _size(data: dict[str, Any]) -> int:
    return len(encode(data))


async def _unsubscribe(tap: Subscription) -> None:
    try:
        await tap.unsubscribe()
    except nats.errors.Error as error:
        log.debug("not unsubscribed: %s", error, extra={"action": "unsubscribe_failed"})
