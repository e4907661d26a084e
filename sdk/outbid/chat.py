"""A chat under way: an asynchronous iterator of text chunks that knows its job, its node and, at the end, its reply."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any

import msgspec

from outbid_contracts.errors import NodeUnreachable
from outbid_contracts.events import AttemptLost, Awarded, Chunk, Finished, JobEvent, Loading, Waiting
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.llm import ChatChunk, ChatResult, Usage


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer: the text, who gave it, what it took. `timings` in seconds."""

    job: JobId
    node: NodeId
    name: str
    text: str
    model: str
    finish_reason: str
    usage: Usage
    timings: dict[str, float] = {}
    attempt: int = 1


class ChatStream:
    """Iterate for chunks, or `await stream.reply()` for the whole. Leaving it early cancels the job.

    `on_event` sees what happens beside the text (Awarded, Waiting, Loading, AttemptLost). After an AttemptLost with
    `retry` the answer starts again on another node: `text` is emptied, and `restarts` counts it.
    """

    def __init__(
        self,
        job: JobId,
        events: AsyncIterator[JobEvent],
        cancel: Callable[[JobId], Awaitable[Any]],
        on_event: Callable[[JobEvent], None] | None = None,
    ) -> None:
        self.job = job
        self.node: NodeId | None = None
        self.name: str | None = None
        self.text = ""
        self.restarts = 0
        self._events = events
        self._cancel = cancel
        self._on_event = on_event
        self._attempt = 1
        self._reply: Reply | None = None
        self._ended = False

    def __aiter__(self) -> AsyncIterator[ChatChunk]:
        return self

    async def __anext__(self) -> ChatChunk:
        while not self._ended:
            try:
                event = await anext(self._events)
            except BaseException:
                self._ended = True
                raise
            chunk = self._take(event)
            if chunk is not None:
                return chunk
        raise StopAsyncIteration

    async def reply(self) -> Reply:
        """The whole answer; reads the rest of the stream first."""
        async for _ in self:
            pass
        if self._reply is None:
            raise NodeUnreachable("the stream ended without a result")
        return self._reply

    async def aclose(self) -> None:
        """Cancel the job if it still runs."""
        if not self._ended:
            self._ended = True
            await self._cancel(self.job)

    async def __aenter__(self) -> ChatStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _take(self, event: JobEvent) -> ChatChunk | None:
        match event:
            case Chunk():
                return self._chunk(event)
            case Finished():
                self._finish(event)
            case Awarded():
                self._move_to(event.attempt)
                self.node, self.name = event.node, event.name
                self._notify(event)
            case AttemptLost() | Waiting() | Loading():
                self._notify(event)
            case _:
                pass
        return None

    def _chunk(self, event: Chunk) -> ChatChunk | None:
        if event.attempt < self._attempt:
            return None  # of an attempt that was given up
        self._move_to(event.attempt)
        chunk = msgspec.convert(event.data, ChatChunk)
        self.text += chunk.text
        return chunk

    def _move_to(self, attempt: int) -> None:
        if attempt > self._attempt:
            self.restarts += bool(self.text)
            self.text = ""
            self._attempt = attempt

    def _finish(self, event: Finished) -> None:
        result = msgspec.convert(event.result, ChatResult)
        self.node, self.name, self.text, self._ended = event.node, event.name, result.text, True
        self._reply = Reply(
            job=event.job,
            node=event.node,
            name=event.name,
            text=result.text,
            model=result.model,
            finish_reason=result.finish_reason,
            usage=result.usage,
            timings=event.timings,
            attempt=event.attempt,
        )

    def _notify(self, event: JobEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)
