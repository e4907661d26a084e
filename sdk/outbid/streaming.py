"""A job under way as an asynchronous iterator: what chats and pictures have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from outbid.timing import timed_out
from outbid_contracts.errors import NodeUnreachable
from outbid_contracts.events import JobEvent
from outbid_contracts.ids import JobId, NodeId

Part = TypeVar("Part")
Whole = TypeVar("Whole")


class JobStream(Generic[Part]):
    """Iterate for the parts that `_take` makes of the job's events. Leaving it early cancels the job.

    `on_event` is told what `_take` passes to `_notify`. `timeout_s` runs from the first step of the iteration to the
    last; then the job is cancelled, and TimedOut raised.
    """

    def __init__(
        self,
        job: JobId,
        events: AsyncIterator[JobEvent],
        cancel: Callable[[JobId], Awaitable[Any]],
        on_event: Callable[[JobEvent], None] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self.job = job
        self.node: NodeId | None = None
        self.name: str | None = None
        self._events = events
        self._cancel = cancel
        self._on_event = on_event
        self._ended = False
        self._begun = False
        self._timeout_s = timeout_s
        self._deadline: float | None = None

    def _take(self, event: JobEvent) -> Part | None:
        """The part to hand out, if the event is one. Sets `_ended` with the last."""
        raise NotImplementedError

    async def _at_the_end(self, result: Callable[[], Whole | None]) -> Whole:
        """What the last event brought; waits for it. Raises NodeUnreachable if the stream ended without."""
        async for _ in self:
            pass
        found = result()
        if found is None:
            raise NodeUnreachable("the stream ended without a result")
        return found

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Part:
        while not self._ended:
            try:
                event = await self._event()
            except BaseException:
                self._ended = True
                raise
            part = self._take(event)
            if part is not None:
                return part
        raise StopAsyncIteration

    async def _event(self) -> JobEvent:
        """The next event. Raises TimedOut."""
        if not self._begun:
            self._begun = True
            if self._timeout_s is not None:
                self._deadline = asyncio.get_running_loop().time() + self._timeout_s
        if self._deadline is None:
            return await anext(self._events)
        try:
            async with asyncio.timeout_at(self._deadline):
                return await anext(self._events)
        except TimeoutError as error:
            raise timed_out(self.job, self._timeout_s) from error

    async def aclose(self) -> None:
        """Cancel the job if it still runs."""
        running, self._ended = self._begun and not self._ended, True
        if running:
            await self._cancel(self.job)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _notify(self, event: JobEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)
