"""How an answer that lost its node goes on: the next one is asked to continue the assistant's message begun so far.

Pure and cheap; the daemon calls these. Text held back on the lost node, because it might have begun a stop string, was
never delivered, so no stop string straddles the boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MAX_TOKENS = 256
"""What ChatParams says where a request says nothing."""


def text_of(chunks: Sequence[dict[str, Any]]) -> str:
    return "".join(chunk["text"] for chunk in chunks)


def tokens_of(chunks: Sequence[dict[str, Any]]) -> int:
    return sum(chunk.get("tokens", 1) for chunk in chunks)


def resume_params(params: dict[str, Any], chunks: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """None with a `json_schema`: the engines cannot take up a grammar in the middle."""
    left = _left(params, chunks)
    if params.get("json_schema") is not None or left <= 0:
        return None
    messages = params.get("messages") or [{"role": "user", "content": params["prompt"]}]
    *before, last = messages
    if last["role"] != "assistant":
        before, last = [*before, last], {"role": "assistant", "content": ""}
    begun = {"role": "assistant", "content": last["content"] + text_of(chunks)}
    rest = {key: value for key, value in params.items() if key != "prompt"}
    return rest | {"messages": [*before, begun], "max_tokens": left}


def resume_result(result: dict[str, Any], chunks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`prompt_tokens` is what the last node read less the tokens delivered before: the caller's own prompt, exactly so
    if the text is split into the tokens that it was written in, as it nearly always is.
    """
    tokens, usage = tokens_of(chunks), result["usage"]
    whole = {
        "prompt_tokens": max(0, usage["prompt_tokens"] - tokens),
        "completion_tokens": tokens + usage["completion_tokens"],
    }
    return result | {"text": text_of(chunks) + result["text"], "usage": usage | whole}


def resume_whole(params: dict[str, Any], chunks: Sequence[dict[str, Any]], model: str | None) -> dict[str, Any] | None:
    """All `max_tokens` were delivered. `prompt_tokens` is 0: the node that knew it is gone."""
    if _left(params, chunks) > 0:
        return None
    usage = {"prompt_tokens": 0, "completion_tokens": tokens_of(chunks)}
    return {"text": text_of(chunks), "model": model or "", "finish_reason": "length", "usage": usage}


def _left(params: dict[str, Any], chunks: Sequence[dict[str, Any]]) -> int:
    return int(params.get("max_tokens", MAX_TOKENS)) - tokens_of(chunks)
