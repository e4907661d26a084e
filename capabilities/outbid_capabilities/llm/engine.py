"""The seam between the runner and what computes: two engines behind it, both llama.cpp at heart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from outbid_capabilities.llm.answer import Chat

Emit = Callable[[Sequence[Chat]], None]
"""Called by the engine after each step, with the chats that may have a chunk to `take`."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`context` is tokens per slot. `gpu_layers`: -1 as many as there is room for, 0 none."""

    path: str
    slots: int = 8
    context: int = 2048
    threads: int = 1
    gpu_layers: int = -1


class Engine(Protocol):
    """Writes several chats at once. `submit` may be called from any thread and returns at once.

    The engine calls `begin`, `add`, `end` or `fail` of a chat, hands it to `emit`, and last calls its `report`; it
    looks at `cancelled` at every token.
    """

    info: dict[str, Any]

    def submit(self, chat: Chat) -> None: ...

    def close(self) -> None: ...


def finish_step(chats: Sequence[Chat], emit: Emit) -> None:
    """Send the chunks of a step, then report the chats that ended with it."""
    emit(chats)
    for chat in chats:
        if chat.ended or chat.cancelled:
            chat.report()


def create(name: str, options: EngineOptions, emit: Emit) -> Engine:
    """Load the model with the engine of that name. Raises RunError saying what went wrong."""
    if name == "xllamacpp":
        from outbid_capabilities.llm.engine_xllamacpp import XllamacppEngine

        return XllamacppEngine(options, emit)
    from outbid_capabilities.llm.engine_llama_cpp import LlamaCppEngine

    return LlamaCppEngine(options, emit)
