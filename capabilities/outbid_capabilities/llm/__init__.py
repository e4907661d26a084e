"""`llm.chat`: chats with GGUF models through llama.cpp.

Nothing is imported until asked for: the daemon reads `chat` (msgspec, contracts), the child process reads `runner`
(an engine, pyzmq, msgpack), and neither needs what the other imports.
"""

from __future__ import annotations

from typing import Any

__all__ = ["chat"]


def __getattr__(name: str) -> Any:
    if name != "chat":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from outbid_capabilities.llm.declaration import chat

    return chat
