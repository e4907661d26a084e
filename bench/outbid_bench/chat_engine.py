"""An engine called directly, with nothing of Outbid around it: a helper process for the subset `chat`.

    python -m outbid_bench.chat_engine ENGINE PATH THREADS CONTEXT SLOTS

ENGINE is llama-cpp-python, xllamacpp, or http: xllamacpp's own server, for clients of OpenAI's API.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

from outbid_bench.processes import serve_lines

GREEDY: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "repeat_penalty": 1.0}
"""The same for all that are compared: always the likeliest token."""


class Clock:
    """Of one answer: seconds to its first text and to its end, and how many pieces it had."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self.first_s = 0.0
        self.pieces = 0

    def piece(self, text: str | None) -> None:
        if text:
            self.pieces += 1
            self.first_s = self.first_s or time.perf_counter() - self._begun

    def answer(self, tokens: int | None = None) -> dict[str, Any]:
        return {"first_s": self.first_s, "total_s": time.perf_counter() - self._begun, "tokens": tokens or self.pieces}


def llama_cpp_python(path: str, threads: int, context: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """As its users call it: `create_chat_completion` with `stream=True`. One piece is one token."""
    llama = importlib.import_module("llama_cpp")
    model = llama.Llama(
        path, n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False, use_extra_bufts=False
    )

    def chat(asked: dict[str, Any]) -> dict[str, Any]:
        clock = Clock()
        messages = [{"role": "user", "content": asked["prompt"]}]
        for chunk in model.create_chat_completion(messages, stream=True, max_tokens=asked["max_tokens"], **GREEDY):
            clock.piece(chunk["choices"][0]["delta"].get("content"))
        return clock.answer()

    return chat


def xllamacpp(path: str, threads: int, context: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """In process, through its Python function."""
    server = _server(path, threads, context, slots=1)

    def chat(asked: dict[str, Any]) -> dict[str, Any]:
        clock = Clock()

        def take(chunk: dict[str, Any]) -> bool:
            for choice in chunk.get("choices", ()):
                clock.piece(choice["delta"].get("content"))
            return False

        body = {"messages": [{"role": "user", "content": asked["prompt"]}], "max_tokens": asked["max_tokens"]}
        server.handle_chat_completions(body | GREEDY | {"stream": True}, take)
        return clock.answer()

    return chat


def _server(path: str, threads: int, context: int, slots: int) -> Any:
    """llama.cpp's server inside xllamacpp, with its own settings but for size and threads. Listens on a free port."""
    module = importlib.import_module("xllamacpp")
    params = module.CommonParams()
    params.model.path = path
    params.n_parallel, params.n_ctx = slots, slots * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = 0
    return module.Server(params)


def main(engine: str, path: str, threads: int, context: int, slots: int) -> None:
    if engine == "http":
        server = _server(path, threads, context, slots)
        serve_lines({"url": server.listening_address}, lambda question: {})
        return
    load = llama_cpp_python if engine == "llama-cpp-python" else xllamacpp
    serve_lines({}, load(path, threads, context))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
