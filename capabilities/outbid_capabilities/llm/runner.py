"""The child process of `llm.chat`: one model, one engine, as many chats at once as it has slots.

Imports no msgspec and no contracts: parameters come as the map of ChatParams, results go as the map of ChatResult.
"""

from __future__ import annotations

import faulthandler
import hashlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outbid_capabilities.llm.answer import Chat
from outbid_capabilities.llm.choice import engine_of, missing_engine
from outbid_capabilities.llm.engine import Engine, EngineOptions, create
from outbid_capabilities.llm.request import Request, Sampling, parse
from outbid_capabilities.llm.sizing import default_threads
from outbid_capabilities.runner_kit import Attempt, Progress, RunError, Runner

WARM_TOKENS = 16
WARM_S = 120.0


class LlmRunner(Runner):
    def load(self, model: dict[str, Any] | None, options: dict[str, Any], progress: Progress) -> dict[str, Any]:
        faulthandler.enable()  # a crash of native code leaves its stack in the log
        if model is None or not model.get("path"):
            raise RunError("llm.chat needs a model file; name one in section `llm`", code="runner_unavailable")
        info = model.get("info", {})
        self._model, self._defaults = str(model["name"]), info.get("defaults", {})
        _verify(Path(model["path"]), info.get("sha256"), progress)
        name, engine_options = engine_of(options), _options(model, options)
        if name is None:
            raise RunError(missing_engine(options), code="runner_unavailable")
        progress(None, f"loading {self._model} with {name}")
        self._engine = create(name, engine_options, self._emit)
        progress(0.9, "warming up")
        rates, fixed_s = warm_up(self._engine)
        told = {"threads": engine_options.threads, "context": engine_options.context, "slots": engine_options.slots}
        ready = {"slots": engine_options.slots, "rates": rates, "fixed_s": fixed_s, "info": told | self._engine.info}
        return ready | _memory(model, on_gpu=bool(self._engine.info.get("gpu")))

    def start(self, attempt: Attempt) -> None:
        self._engine.submit(Chat(parse(attempt.params, self._defaults), self._model, attempt))

    def close(self) -> None:
        self._engine.close()

    def _emit(self, chats: Sequence[Chat]) -> None:
        items = [(chat.listener, chunk) for chat in chats if not chat.cancelled and (chunk := chat.take()) is not None]
        if items:
            self.emit_chunks([(listener, chunk) for listener, chunk in items if isinstance(listener, Attempt)])


def _options(model: Mapping[str, Any], options: Mapping[str, Any]) -> EngineOptions:
    return EngineOptions(
        path=model["path"],
        slots=int(options.get("slots") or 8),
        context=int(options.get("context") or model.get("info", {}).get("context") or 2048),
        threads=int(options.get("threads") or default_threads()),
        gpu_layers=int(options.get("gpu_layers", -1)),
    )


def _memory(model: Mapping[str, Any], *, on_gpu: bool) -> dict[str, float]:
    """On the card as computed: the process has the file mapped all the same, so its size would count twice."""
    if not on_gpu:
        return {"gpu_memory_mib": 0.0}
    return {kind: float(model.get(kind, 0.0)) for kind in ("memory_mib", "gpu_memory_mib")}


def _verify(path: Path, sha256: str | None, progress: Progress) -> None:
    """Native code parses the file, so what comes from a package index is checked first (0.1 s per 100 MB)."""
    if not path.is_file():
        raise RunError(f"there is no file {path}", code="runner_unavailable")
    if sha256 is None:
        return
    progress(None, "checking the model file")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise RunError(f"{path} is not the file it should be (SHA-256 {found}); install it anew", "runner_unavailable")


def warm_up(engine: Engine) -> tuple[dict[str, float], float]:
    """Measured seconds per unit of work, and per chat: a short prompt, a longer one, a few tokens each.

    The very first steps are slow (pages of the weights are read, graphs are built), so they are not counted.
    """
    _warm(engine, words=1, tokens=2)
    short = _warm(engine, words=1, tokens=WARM_TOKENS)
    long = _warm(engine, words=64, tokens=1)
    prompt_s = (long.timings()["prompt_s"] - short.timings()["prompt_s"]) / max(1, long.evaluated - short.evaluated)
    count, seconds = short.measured().get("new_tokens", (1.0, 0.0))
    new_s = seconds / count
    prompt_s = min(max(prompt_s, new_s / 1000), new_s)  # noise must not make a rate absurd
    fixed_s = max(0.0, short.timings()["first_token_s"] - short.evaluated * prompt_s)
    return {"prompt_tokens": prompt_s, "new_tokens": new_s}, fixed_s


def _warm(engine: Engine, *, words: int, tokens: int) -> Chat:
    sampling = Sampling(temperature=0.0, seed=0)
    text = " ".join(f"Item {n}." for n in range(words))
    request = Request([{"role": "user", "content": text}], tokens, sampling, ignore_end=True)
    answer = _Warm()
    chat = Chat(request, "", answer)
    engine.submit(chat)
    if not answer.over.wait(WARM_S):
        raise RunError(f"the model wrote nothing within {WARM_S:.0f} s", code="runner_unavailable")
    if answer.error is not None:
        raise answer.error
    return chat


class _Warm:
    """Whom a warm-up chat reports to."""

    def __init__(self) -> None:
        self.cancelled, self.over = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self.kept: Mapping[str, Any] | None = None

    def done(self, result: Mapping[str, Any], timings: Any = None, measured: Any = None) -> None:
        self.over.set()

    def raised(self, error: BaseException) -> None:
        self.error = error
        self.over.set()

    def stopped(self) -> None:
        self.over.set()
