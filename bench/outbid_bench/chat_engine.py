"""An engine with nothing of Outbid around it: a helper process for the subset `chat`.

    python -m outbid_bench.chat_engine KIND PATH THREADS CONTEXT SLOTS

KIND is an engine called directly (`llama-cpp-python`, `xllamacpp`), or a server for clients of OpenAI's API:
`xllamacpp-server` is the one of llama.cpp inside xllamacpp, `llama-cpp-server` is `llama_cpp.server`. CONTEXT is tokens
per slot.
"""

from __future__ import annotations

import importlib
import itertools
import json
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from outbid_bench.processes import serve_lines

GREEDY: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "repeat_penalty": 1.0}
"""The same for all that are compared: always the likeliest token."""

Messages = Sequence[dict[str, str]]
"""A conversation as in OpenAI's API: role and content."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds to the first text and to the end, and between one piece of text and the next."""

    text: str
    tokens: int
    first_s: float
    total_s: float
    gaps_s: Sequence[float]


class Clock:
    """Takes the time of one answer."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._times: list[float] = []
        self._text: list[str] = []

    def piece(self, text: str | None) -> None:
        if text:
            self._times.append(time.perf_counter())
            self._text.append(text)

    def answer(self, tokens: int | None = None) -> Answer:
        """`tokens`: where a piece is not always one token. Raises RuntimeError if there was no text."""
        if not self._times:
            raise RuntimeError("a chat without an answer")
        gaps = [after - before for before, after in itertools.pairwise(self._times)]
        total_s = time.perf_counter() - self._begun
        return Answer("".join(self._text), tokens or len(self._times), self._times[0] - self._begun, total_s, gaps)


# -- called directly ---------------------------------------------------------------------------------------------------


def llama_cpp_python(path: str, threads: int, context: int) -> Callable[[dict[str, Any]], Answer]:
    """As its users call it: `create_chat_completion` with `stream=True`. One piece is one token."""
    llama = importlib.import_module("llama_cpp")
    model = llama.Llama(
        path, n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False, use_extra_bufts=False
    )

    def chat(asked: dict[str, Any]) -> Answer:
        clock = Clock()
        stream = model.create_chat_completion(asked["messages"], stream=True, max_tokens=asked["max_tokens"], **GREEDY)
        for chunk in stream:
            clock.piece(chunk["choices"][0]["delta"].get("content"))
        return clock.answer()

    return chat


def xllamacpp(path: str, threads: int, context: int) -> Callable[[dict[str, Any]], Answer]:
    """In process, through its Python function."""
    server = _xllamacpp(path, threads, context, slots=1)

    def chat(asked: dict[str, Any]) -> Answer:
        clock = Clock()

        def take(chunk: dict[str, Any]) -> bool:
            for choice in chunk.get("choices", ()):
                clock.piece(choice["delta"].get("content"))
            return False

        server.handle_chat_completions(asked | GREEDY | {"stream": True}, take)
        return clock.answer()

    return chat


def _xllamacpp(path: str, threads: int, context: int, slots: int) -> Any:
    """llama.cpp's server inside xllamacpp, with its own settings but for size and threads. Listens on a free port."""
    module = importlib.import_module("xllamacpp")
    params = module.CommonParams()
    params.model.path = path
    params.n_parallel, params.n_ctx = slots, slots * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = 0
    return module.Server(params)


# -- servers -----------------------------------------------------------------------------------------------------------


def serve_xllamacpp(path: str, threads: int, context: int, slots: int) -> None:
    server = _xllamacpp(path, threads, context, slots)
    serve_lines({"url": server.listening_address}, lambda question: {})


def serve_llama_cpp(path: str, threads: int, context: int) -> None:
    """`python -m llama_cpp.server` but for two things: it says where it listens, and weights are not repacked (crashes
    on a CPU with AMX; the server has no option for it).

    It has one stream for all callers. Of its options `interrupt_requests` is off, or each request would cut the one
    before short; `logits_all` too, which only log-probabilities need.
    """
    without_repacking()
    app = importlib.import_module("llama_cpp.server.app")
    settings: Any = importlib.import_module("llama_cpp.server.settings")
    uvicorn: Any = importlib.import_module("uvicorn")
    model = settings.ModelSettings(
        model=path, n_ctx=context, n_threads=threads, n_threads_batch=threads, logits_all=False, verbose=False
    )
    server = settings.ServerSettings(interrupt_requests=False)
    asgi = app.create_app(server_settings=server, model_settings=[model])
    listening = socket.create_server(("127.0.0.1", 0))
    print(json.dumps({"url": f"http://127.0.0.1:{listening.getsockname()[1]}"}), flush=True)
    uvicorn.Server(uvicorn.Config(asgi, log_level="warning")).run(sockets=[listening])


def without_repacking() -> None:
    """`Llama` cannot be told, and with it a CPU with AMX crashes (llama-cpp-python 0.3.36)."""
    functions: Any = importlib.import_module("llama_cpp.llama_cpp")
    defaults = functions.llama_model_default_params

    def params() -> Any:
        found = defaults()
        found.use_extra_bufts = False
        return found

    functions.llama_model_default_params = params


def main(kind: str, path: str, threads: int, context: int, slots: int) -> None:
    if kind == "xllamacpp-server":
        serve_xllamacpp(path, threads, context, slots)
    elif kind == "llama-cpp-server":
        serve_llama_cpp(path, threads, context)
    else:
        chat = (llama_cpp_python if kind == "llama-cpp-python" else xllamacpp)(path, threads, context)
        serve_lines({}, lambda asked: asdict(chat(asked)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
