"""A chat request as the engines take it: the parameters' map, checked, with the model's defaults filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from outbid_capabilities.runner_kit import RunError

MAX_SEED = 0xFFFF_FFFE
"""llama.cpp reads 0xFFFFFFFF as "choose one"."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. The defaults are llama.cpp's own, so that both engines mean the same."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """`messages` ending with one of the assistant's are continued from there, not answered.

    `ignore_end` writes on after the model's end mark; warm-up and benchmarks want a known number of tokens. No field of
    ChatParams, so no caller of the mesh can set it.
    """

    messages: list[dict[str, str]]
    max_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    json_schema: dict[str, Any] | None = None
    ignore_end: bool = False

    @property
    def continues(self) -> bool:
        return self.messages[-1]["role"] == "assistant"


def invalid(message: str) -> RunError:
    """The caller's mistake: no other node would do better."""
    return RunError(message, code="invalid_request", retry=False)


def overflow(prompt_tokens: int, context: int) -> RunError:
    message = (
        f"the prompt has {prompt_tokens} tokens, the model's context here is {context} and one must be left for the"
        " answer; shorten the prompt, or raise `context` in section `llm`"
    )
    return RunError(message, code="context_overflow", retry=False)


def parse(params: Mapping[str, Any], defaults: Mapping[str, float]) -> Request:
    """The request of a ChatParams map. Raises RunError(invalid_request)."""
    request = Request(
        messages=_messages(params),
        max_tokens=int(params.get("max_tokens", 256)),
        sampling=_sampling(params, defaults),
        stop=_stop(params.get("stop", ())),
        json_schema=_schema(params.get("json_schema")),
        ignore_end=bool(params.get("ignore_end")),
    )
    if request.max_tokens < 1:
        raise invalid("`max_tokens` must be at least 1")
    if request.json_schema is not None and request.continues:
        raise invalid("`json_schema` cannot continue an answer already begun; leave out the last assistant message")
    return request


def _messages(params: Mapping[str, Any]) -> list[dict[str, str]]:
    messages, prompt = params.get("messages"), params.get("prompt")
    if (messages is None) == (prompt is None):
        raise invalid("give either `prompt` (text) or `messages` (a list of {role, content}), not both")
    if messages is None:
        messages = [{"role": "user", "content": prompt}]
    plain = [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
    if not any(message["content"].strip() for message in plain):
        raise invalid("`messages` has no content" if prompt is None else "`prompt` is empty")
    return plain


def _sampling(params: Mapping[str, Any], defaults: Mapping[str, float]) -> Sampling:
    names = ("temperature", "top_p", "repeat_penalty")
    given = {name: float(params[name]) for name in names if params.get(name) is not None}
    seed = params.get("seed")
    known: dict[str, Any] = {name: float(defaults[name]) for name in names if name in defaults} | given
    return Sampling(seed=None if seed is None else min(int(seed), MAX_SEED), **known)


def _stop(stop: Any) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(map(str, stop))
    if any(not text for text in stops):
        raise invalid("`stop` has an empty string")
    return stops


def _schema(schema: Any) -> dict[str, Any] | None:
    if schema is not None and not isinstance(schema, dict):
        raise invalid("`json_schema` must be an object, as JSON Schema defines it")
    return schema
