"""`image.generate`, `image.edit`, `image.animate`: pictures with diffusion models.

Nothing is imported until asked for: the daemon reads `capabilities` (msgspec, contracts), the child process reads
`runner` (torch or ONNX Runtime, pyzmq, msgpack), and neither needs what the other imports.
"""

from __future__ import annotations

from typing import Any

__all__ = ["capabilities"]


def __getattr__(name: str) -> Any:
    if name != "capabilities":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from outbid_capabilities.image.declaration import capabilities

    return capabilities
