"""A chat under way: an asynchronous iterator of text chunks that knows its job, its node and, at the end, its reply."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from outbid.streaming import JobStream
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


class ChatStream(JobStream[ChatChunk]):
    """Iterate for chunks, or `await stream.reply()` for the whole. Leaving it early cancels the job.

    `on_event` sees what happens beside the text (Awarded, Waiting, Loading, AttemptLost). After an AttemptLost with
    `retry` another node goes on where the text ends (`handovers` counts it). Where that cannot be, the answer starts
    again: `text` is emptied, the chunks begin anew, and `restarts` counts it.
    """

    def __init__(
        self,
        job: JobId,
        events: AsyncIterator[JobEvent],
        cancel: Callable[[JobId], Awaitable[Any]],
        on_event: Callable[[JobEvent], None] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        super().__init__(job, events, cancel, on_event, timeout_s)
        self.text = ""
        self.restarts = 0
        self.handovers = 0
        self._texts: list[str] = []
        self._ahead = ""
        """Handed out, but of pieces that the job's owner had not seen: what comes now should say the same again."""
        self._tokens = 0
        self._attempt = 0
        self._reply: Reply | None = None

    async def reply(self) -> Reply:
        """The whole answer; reads the rest of the stream first."""
        return await self._at_the_end(lambda: self._reply)

    def _take(self, event: JobEvent) -> ChatChunk | None:
        match event:
            case Chunk():
                return self._chunk(event)
            case Finished():
                return self._finish(event)
            case Awarded():
                self._move_to(event.attempt, event.chunks)
                self.node, self.name = event.node, event.name
                self._notify(event)
            case AttemptLost() | Waiting() | Loading():
                self._notify(event)
            case _:
                pass
        return None

    def _chunk(self, event: Chunk) -> ChatChunk | None:
        self._move_to(event.attempt, event.seq)
        chunk = msgspec.convert(event.data, ChatChunk)
        self._texts.append(chunk.text)
        self.text += chunk.text
        self._tokens += chunk.tokens
        return self._beyond(chunk) if self._ahead else chunk

    def _beyond(self, chunk: ChatChunk) -> ChatChunk | None:
        """What of the chunk was not handed out before."""
        if self._ahead.startswith(chunk.text):
            self._ahead = self._ahead[len(chunk.text) :]
            return None
        said, self._ahead = self._ahead, ""
        if chunk.text.startswith(said):
            return ChatChunk(text=chunk.text[len(said) :], tokens=chunk.tokens)
        self.restarts += 1
        return chunk

    def _move_to(self, attempt: int, at: int) -> None:
        """A newer attempt goes on after `at` pieces."""
        if attempt <= self._attempt:
            return
        if self.text and at:
            self.handovers += 1
            kept = "".join(self._texts[:at])
            self._ahead = self.text[len(kept) :] + self._ahead
            self.text = kept
        elif self.text:
            self.restarts += 1
            self.text = self._ahead = ""
        self._attempt = attempt
        del self._texts[at:]

    def _finish(self, event: Finished) -> ChatChunk | None:
        """Returns what no chunk brought, because it was lost on the way."""
        result = msgspec.convert(event.result, ChatResult)
        handed_out, tokens = self.text + self._ahead, result.usage.completion_tokens - self._tokens
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
        if not result.text.startswith(handed_out) or result.text == handed_out:
            return None
        return ChatChunk(text=result.text[len(handed_out) :], tokens=max(0, tokens))
