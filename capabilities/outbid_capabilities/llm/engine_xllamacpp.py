"""xllamacpp: llama.cpp's own batching server in this process, one waiting thread per slot.

The server also opens an HTTP port on loopback that cannot be switched off; a random key closes it. Its prompt cache in
memory (8 GiB unless told otherwise) is off: the node's memory budget counts the model and its context only.
"""

from __future__ import annotations

import importlib
import queue
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from outbid_capabilities.llm.answer import Chat
from outbid_capabilities.llm.engine import Emit, EngineOptions, finish_step
from outbid_capabilities.llm.request import invalid, overflow
from outbid_capabilities.runner_kit import RunError

CPU_BATCH = 64
"""Tokens per step without a GPU: reading a prompt holds up the other chats, and a cancel, for one step. A prompt
is read 1 % slower than with twice as many, with half as many 6 % (SmolLM2-135M, one thread).
"""

GPU_BATCH = 2048

ALIKE = 0.1
"""A chat goes to the free slot that has read most of it, if that is more than this part: the server's own rule."""

Messages = list[dict[str, str]]


class XllamacppEngine:
    def __init__(self, options: EngineOptions, emit: Emit) -> None:
        self._module: Any = importlib.import_module("xllamacpp")
        self._options, self._emit = options, emit
        self._server = self._load()
        self.info: dict[str, Any] = {"engine": "xllamacpp", "version": str(self._module.__version__)}
        self.info["gpu"] = self._on_gpu()
        self._slots = Slots(options.slots)
        self._asked: queue.SimpleQueue[Chat | None] = queue.SimpleQueue()
        for n in range(options.slots):
            threading.Thread(target=self._work, name=f"slot-{n}", daemon=True).start()

    def submit(self, chat: Chat) -> None:
        self._asked.put(chat)

    def close(self) -> None:
        for _ in range(self._options.slots):
            self._asked.put(None)

    def _load(self) -> Any:
        try:
            return self._module.Server(self._params())
        except Exception as error:
            raise RunError(f"llama.cpp cannot load {self._options.path}; the log of this runner says why") from error

    def _params(self) -> Any:
        options, params = self._options, self._module.CommonParams()
        params.model.path = options.path
        params.n_parallel, params.n_ctx = options.slots, options.slots * options.context
        params.kv_unified = False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
        params.n_gpu_layers = options.gpu_layers
        params.n_batch = GPU_BATCH if self._on_gpu() else max(CPU_BATCH, 2 * options.slots)  # room beside the writing
        params.n_ubatch = min(512, params.n_batch)
        params.fit_params = self._on_gpu()
        params.cache_ram_mib = 0
        params.n_threads_http = 1
        params.api_keys = [secrets.token_hex(16)]
        params.reasoning_format = self._module.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
        params.warmup, params.verbosity = False, 1
        return params

    def _on_gpu(self) -> bool:
        kinds = {str(device["type"]) for device in self._module.get_device_info()}
        return self._options.gpu_layers != 0 and any("GPU" in kind.upper() for kind in kinds)

    def _work(self) -> None:
        while (chat := self._asked.get()) is not None:
            with self._slots.for_chat(chat):
                _Stream(chat, self._emit).run(self._server)
            finish_step([chat], self._emit)  # its slot is free by then: who hears of the end may go on at once


class Slots:
    """Which of the server's slots takes a chat. It would choose by itself, but not say which it was."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._free: list[tuple[int, Messages]] = [(number, []) for number in range(count)]
        """With what they have read, the one unused for longest first."""

    @contextmanager
    def for_chat(self, chat: Chat) -> Iterator[None]:
        with self._lock:
            number, _ = taken = choose_slot(self._free, chat.request.messages)
            self._free.remove(taken)
        chat.slot = number
        try:
            yield
        finally:
            with self._lock:
                self._free.append((number, chat.request.messages))


def choose_slot(free: Sequence[tuple[int, Messages]], messages: Messages) -> tuple[int, Messages]:
    """The one that has read most of it, else the first."""
    most = max(free, key=lambda slot: _alike(slot[1], messages))
    return most if _alike(most[1], messages) > ALIKE * _size(messages) else free[0]


def _alike(read: Messages, messages: Messages) -> int:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(read, messages, strict=False))
    return _size([message for message, _ in same])


def _size(messages: Messages) -> int:
    return sum(len(message["content"]) + 1 for message in messages)


class _Stream:
    """One chat's way through the server: `_on_chunk` is called in this thread for each token."""

    def __init__(self, chat: Chat, emit: Emit) -> None:
        self._chat, self._emit = chat, emit

    def run(self, server: Any) -> None:
        chat = self._chat
        chat.begin()
        try:
            if not chat.cancelled:
                server.handle_chat_completions(_body(chat), self._on_chunk)
            if not chat.ended and not chat.cancelled:
                chat.fail(RunError("the engine's stream ended early"))
        except Exception as error:
            chat.fail(_error(str(error)))

    def _on_chunk(self, chunk: dict[str, Any]) -> bool:
        """True stops the server's work on this chat."""
        chat = self._chat
        if chat.cancelled:
            return True
        if "error" in chunk:
            chat.fail(_failed(chunk["error"]))
            return True
        self._count(chunk.get("timings"))
        for choice in chunk.get("choices", ()):
            self._take(choice, chunk.get("timings") or {})
        if not chat.ended:
            self._emit([chat])
        return chat.ended

    def _count(self, timings: dict[str, Any] | None) -> None:
        if timings:
            self._chat.evaluated = timings["prompt_n"]
            self._chat.prompt_tokens = timings["cache_n"] + timings["prompt_n"]

    def _take(self, choice: dict[str, Any], timings: dict[str, Any]) -> None:
        chat, text = self._chat, (choice.get("delta") or {}).get("content")
        if text:
            chat.add(text.encode(), max(0, timings.get("predicted_n", chat.new_tokens + 1) - chat.new_tokens))
        if choice.get("finish_reason"):
            chat.end("length" if choice["finish_reason"] == "length" else "stop")


def _body(chat: Chat) -> dict[str, Any]:
    request, sampling = chat.request, chat.request.sampling
    body: dict[str, Any] = {
        "messages": request.messages,
        "stream": True,
        "timings_per_token": True,
        "return_progress": True,  # also a chance to stop while the prompt is read
        "max_tokens": request.max_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
        "repeat_last_n": sampling.repeat_last_n,
        "ignore_eos": request.ignore_end,
        "cache_prompt": sampling.seed is None,  # a reused prefix differs in its last bits
        "id_slot": chat.slot,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if request.json_schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"schema": request.json_schema}}
    return body


def _failed(error: dict[str, Any]) -> RunError:
    """What an error of the server means for the job."""
    if error.get("type") == "exceed_context_size_error":
        return overflow(error["n_prompt_tokens"], error["n_ctx"])
    if error.get("code") == 400:
        return invalid(str(error.get("message")))
    return RunError(str(error.get("message")))


def _error(message: str) -> RunError:
    """The server throws what is wrong with a request or its schema."""
    if "JSON schema" in message:
        return invalid(f"`json_schema` is not a schema this engine knows: {message.partition('JSON schema')[2]}")
    return RunError(message)
