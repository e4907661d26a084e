"""One answer being written: what an engine feeds, and what goes out as chunks and as the result."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from outbid_capabilities.llm.request import Request
from outbid_capabilities.llm.text import StopHolder, Utf8Assembler

Finish = Literal["stop", "length"]

MIN_PROMPT_MEASURED = 16
"""Prompt tokens below which the time is that of one decode step and says nothing about the rate."""


class Listener(Protocol):
    """What a chat reports to: the runner kit's Attempt, or a bench's own."""

    kept: Mapping[str, Any] | None

    @property
    def cancelled(self) -> threading.Event: ...
    def done(self, result: Mapping[str, Any], timings: Any = None, measured: Any = None) -> None: ...
    def raised(self, error: BaseException) -> None: ...
    def stopped(self) -> None: ...


class Chat:
    """State of one answer. One thread at a time may touch it (the engine's), only `cancelled` is shared.

    Life: `begin` when a slot takes it, `add` per token, `take` for the chunk to send, `end`, then `report`.
    """

    def __init__(self, request: Request, model: str, listener: Listener) -> None:
        self.request, self.model, self.listener = request, model, listener
        self.prompt_tokens = self.evaluated = self.new_tokens = 0
        self.slot: int | None = None
        """Whose cache its tokens went to; None as long as it has touched none."""
        self.finish: Finish | None = None
        self.error: BaseException | None = None
        self._utf8, self._stops = Utf8Assembler(), StopHolder(request.stop)
        self._text: list[str] = []
        self._out, self._out_tokens = "", 0
        self._submitted = self._begun = time.perf_counter()
        self._first = self._ended = 0.0

    @property
    def cancelled(self) -> bool:
        return self.listener.cancelled.is_set()

    @property
    def ended(self) -> bool:
        return self.finish is not None or self.error is not None

    def begin(self) -> None:
        self._begun = time.perf_counter()

    def add(self, data: bytes, tokens: int = 1) -> bool:
        """Take the bytes of new tokens; False if the answer is complete (a stop string came, or max_tokens)."""
        if not self.new_tokens:
            self._first = time.perf_counter()
        self.new_tokens += tokens
        self._out_tokens += tokens
        self._out += self._stops.add(self._utf8.add(data))
        if self._stops.found:
            self.end("stop")
        elif self.new_tokens >= self.request.max_tokens:
            self.end("length")
        return self.finish is None

    def end(self, finish: Finish) -> None:
        if self.finish is None:
            self._out += self._stops.add(self._utf8.end()) + self._stops.end()
            self.finish, self._ended = ("stop" if self._stops.found else finish), time.perf_counter()

    def fail(self, error: BaseException) -> None:
        self.error = error

    def take(self) -> dict[str, Any] | None:
        """The chunk to send now, if there is one."""
        if not self._out:
            return None
        chunk = {"text": self._out, "tokens": self._out_tokens}
        self._text.append(self._out)
        self._out, self._out_tokens = "", 0
        return chunk

    def report(self) -> None:
        """Tell how it ended. After the last chunk went out."""
        self.listener.kept = self._kept()
        if self.finish is not None and not self.cancelled:
            self.listener.done(self._result(), timings=self.timings(), measured=self.measured())
        elif self.error is not None and not self.cancelled:
            self.listener.raised(self.error)
        else:
            self.listener.stopped()

    def _kept(self) -> dict[str, Any] | None:
        if self.slot is None:
            return None
        reused = 1 - self.evaluated / self.prompt_tokens if self.prompt_tokens else 0.0
        whole = self.new_tokens > 0 and self.error is None
        return {"slot": self.slot, "reused": {"prompt_tokens": reused}, "whole": whole}

    def _result(self) -> dict[str, Any]:
        usage = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.new_tokens}
        return {"text": "".join(self._text), "model": self.model, "finish_reason": self.finish, "usage": usage}

    def timings(self) -> dict[str, float]:
        """Seconds: waited for a slot, prompt read, first token after the request came, the others written."""
        first = self._first or self._ended
        generate_s = self._ended - first
        found = {
            "queue_s": self._begun - self._submitted,
            "prompt_s": first - self._begun,
            "first_token_s": first - self._submitted,
            "generate_s": generate_s,
        }
        if self.new_tokens > 1 and generate_s > 0:
            found["tokens_per_s"] = (self.new_tokens - 1) / generate_s
        return found

    def measured(self) -> dict[str, tuple[float, float]]:
        """What the units cost: prompt tokens really evaluated (a reused prefix is not), new tokens after the first."""
        timings, found = self.timings(), {}
        if self.evaluated >= MIN_PROMPT_MEASURED:
            found["prompt_tokens"] = (float(self.evaluated), timings["prompt_s"])
        if self.new_tokens > 1:
            found["new_tokens"] = (float(self.new_tokens - 1), timings["generate_s"])
        return found
