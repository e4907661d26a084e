"""`llm.chat`: parameters, chunks and results."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

CHAT = "llm.chat"


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["system", "user", "assistant"]
    content: str


class ChatParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A chat request: `prompt`, or `messages` as in OpenAI's API. None means the model's own default.

    `json_schema` constrains the answer to JSON of that schema. `stop` strings end the answer and are not part of it.
    """

    prompt: str | None = None
    messages: tuple[ChatMessage, ...] | None = None
    model: str | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    temperature: Annotated[float, Meta(ge=0, le=5)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    seed: Annotated[int, Meta(ge=0, le=4_294_967_295)] | None = None
    stop: str | tuple[str, ...] = ()
    json_schema: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either `prompt` (text) or `messages` (a list of {role, content}), not both")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("`prompt` is empty")
        if self.messages is not None and not any(message.content.strip() for message in self.messages):
            raise ValueError("`messages` has no content")
        if any(not text for text in self.stop):
            raise ValueError("`stop` has an empty string")

    def as_messages(self) -> list[dict[str, str]]:
        if self.messages is None:
            return [{"role": "user", "content": self.prompt or ""}]
        return [{"role": message.role, "content": message.content} for message in self.messages]


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """`text` holds whole characters: a character split over tokens waits for its last token. `tokens` is how many it
    took.
    """

    text: str
    tokens: int = 1


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens. Of an answer that went on on another node `prompt_tokens` is derived, and 0 where nobody could tell."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class ChatResult(msgspec.Struct, frozen=True, kw_only=True):
    """`finish_reason`: stop (the model ended, or a stop string came) or length (max_tokens or the context was full)."""

    text: str
    model: str
    finish_reason: Literal["stop", "length"]
    usage: Usage
