"""The events of one streamed job, also where the connection or the job's owner is lost meanwhile.

An attempt that is lost is the owner's affair. Where the owner itself is lost, the caller is the only one left who knows
what was asked and what has come: it hands both to whichever node answers, under the same job id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

from outbid.connection import Connection
from outbid_contracts import subjects
from outbid_contracts.codec import encode
from outbid_contracts.errors import (
    Draining,
    NoBid,
    NodeUnreachable,
    NoNode,
    OutbidError,
    UnknownCapability,
    UnknownJob,
    UnknownModel,
)
from outbid_contracts.events import AttemptLost, Awarded, Chunk, Finished, JobEvent
from outbid_contracts.ids import JobId
from outbid_contracts.messages import JobRecord
from outbid_contracts.pieces import Pieces
from outbid_contracts.requests import MAX_REQUEST_BYTES, JobRequest

REATTACH_S = 30.0
"""How long a stream looks for a node that goes on with it: a daemon that restarts is back within seconds."""

PAUSE_S = 0.25

SILENT_S = 2.0
"""After so long without an event the owner is asked whether the job still runs."""

ANSWER_S = 5.0
"""How long it may take to say so. One that does not answer may be frozen; it is asked again."""

LATE_S = 1.0
"""How long the last pieces are waited for that the end overtook: they come from the winner, the end from the owner."""

_MAY_PASS = (NodeUnreachable, NoNode, UnknownCapability, Draining, NoBid, UnknownModel)
"""What a node says that has just started, or is about to stop, or does not know the others yet."""


class Following:
    """`events()` without doubles or holes: a piece is given out if it follows the one before, or if it begins anew
    where an `Awarded` said so.
    """

    def __init__(
        self,
        connected: Callable[[], Awaitable[Connection]],
        capability: str,
        message: dict[str, Any],
        job: JobId,
        call_off: Callable[[JobId], None],
    ) -> None:
        """`call_off` is called where the reader goes before the end, by whatever way."""
        self.job = job
        self.reattached = 0
        self._call_off = call_off
        self._over = False
        self._connected = connected
        self._subject = subjects.capability(capability)
        self._message = message
        self._pieces = Pieces()
        self._model: str | None = None
        self._heard = False
        """Whether the present exchange has brought anything."""
        self._end: Finished | None = None
        """It came before the last pieces."""
        self._progress = time.monotonic()

    async def events(self) -> AsyncGenerator[JobEvent, None]:
        try:
            async with aclosing(self._all()) as events:
                async for event in events:
                    self._over = isinstance(event, Finished)
                    yield event
        except (asyncio.CancelledError, GeneratorExit):
            if not self._over:
                self._call_off(self.job)
            raise

    async def _all(self) -> AsyncGenerator[JobEvent, None]:
        while True:
            try:
                async with aclosing(self._exchange()) as events:
                    async for event in events:
                        if self._is_news(event):
                            self._progress = time.monotonic()
                            yield event
                        if isinstance(event, Finished):
                            return
            except _MAY_PASS as error:
                if not self._may_pass(error):
                    raise
            await asyncio.sleep(PAUSE_S)
            self.reattached += 1

    async def _exchange(self) -> AsyncGenerator[JobEvent, None]:
        self._heard, self._end = False, None
        connection = await self._connected()
        stream = connection.stream(
            self._subject,
            self._message | self._resume(),
            JobEvent,
            idle_timeout_s=SILENT_S,
            check=lambda: self._check(connection),
            more=lambda: self._end is not None,
        )
        async with aclosing(stream) as events:
            async for event in events:
                self._heard = True
                if isinstance(event, Finished) and self._lacks(event):
                    self._end = event
                    async with aclosing(self._late(events, event)) as pieces:
                        async for piece in pieces:
                            yield piece
                yield event
        raise NodeUnreachable("the stream ended without a result")

    async def _late(self, events: AsyncGenerator[JobEvent, None], end: Finished) -> AsyncGenerator[JobEvent, None]:
        """The last pieces, if they come; without them the end must do."""
        with suppress(TimeoutError):
            while self._lacks(end):
                async with asyncio.timeout(LATE_S):
                    event = await anext(events, None)
                if event is None:
                    return
                yield event

    def _lacks(self, end: Finished) -> bool:
        """Asked with a job that had ended before, it brings no pieces, and no award."""
        return end.attempt == self._pieces.attempt and len(self._pieces.data) < end.chunks

    def _resume(self) -> dict[str, Any]:
        if not self.reattached:
            return {}
        has = {"chunks": self._pieces.data, "attempt": self._pieces.attempt, "model": self._model}
        if len(encode(self._message | has)) > MAX_REQUEST_BYTES:  # previews of large pictures: it starts again
            del has["chunks"]
        return {"resume": {key: value for key, value in has.items() if value}}

    def _is_news(self, event: JobEvent) -> bool:
        """Raises NodeUnreachable if pieces before it were lost on the way."""
        if isinstance(event, Awarded):
            self._model = event.model
            whole, news = self._pieces.award(event.attempt, event.chunks), True
        elif isinstance(event, Chunk):
            taken = self._pieces.take(event)
            whole, news = taken != "hole", taken == "taken"
        else:
            whole = news = True
            if isinstance(event, AttemptLost):
                self._pieces.lose(event.attempt)
        if not whole:
            raise NodeUnreachable("a part of the stream was lost on the way")
        return news

    def _may_pass(self, error: OutbidError) -> bool:
        """What breaks a connection or a stream does, for a while; a node's answer only where it is no answer to what
        the caller asked, but to the stream's being taken up again.
        """
        broken = isinstance(error, (NodeUnreachable, NoNode))
        stops = isinstance(error, Draining) and self._heard
        taking_up = self.reattached > 0 and not self._heard
        return (broken or stops or taking_up) and time.monotonic() - self._progress < REATTACH_S

    async def _check(self, connection: Connection) -> None:
        """Nothing came for a while. Raises NodeUnreachable if nobody runs the job any more."""
        try:
            async with asyncio.timeout(ANSWER_S):
                record: JobRecord = await connection.request(
                    subjects.jobs("get"), JobRequest(job=self.job), JobRecord, timeout_s=None
                )
        except TimeoutError:
            return
        except UnknownJob as error:
            raise NodeUnreachable("the node that owned the job is gone") from error
        if record.state not in ("waiting", "running"):
            raise NodeUnreachable("the job has ended, and the word of it was lost")
