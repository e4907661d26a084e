"""What a job on the ONNX engine needs to go on elsewhere: its latents after a step, as MessagePack."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack
import numpy as np

from outbid_capabilities.image.engine import Request

if TYPE_CHECKING:
    from outbid_capabilities.image.onnx_noise import Latents

VERSION = 1

_NO_MATTER = ("preview_every", "checkpoint_every", "checkpoint")
"""Fields of a request that change nothing in its pictures."""


class Checkpoint(NamedTuple):
    """`step`: how many of the schedule are behind. `before`: what the scheduler keeps of the last one."""

    step: int
    latents: Latents
    before: Latents | None


def pack(digest: str, checkpoint: Checkpoint) -> bytes:
    before = checkpoint.before
    found: bytes = msgpack.packb(
        {
            "version": VERSION,
            "digest": digest,
            "step": checkpoint.step,
            "latents": checkpoint.latents.astype("<f4").tobytes(),
            "before": None if before is None else before.astype("<f4").tobytes(),
        }
    )
    return found


def unpack(data: bytes, digest: str, shape: tuple[int, ...]) -> Checkpoint | None:
    """None where it cannot be read or was made for another request, model or version."""
    try:
        found = msgpack.unpackb(data)
        if (found["version"], found["digest"]) != (VERSION, digest):
            return None
        latents, before, step = _array(found["latents"], shape), found["before"], int(found["step"])
        return Checkpoint(step, latents, None if before is None else _array(before, shape))
    except Exception:  # msgpack raises whatever it likes
        return None


def digest(request: Request, model: Any) -> str:
    """Of all that decides how the pictures come out. `model` is what tells its weights apart."""
    sha256 = hashlib.sha256(repr(model).encode())
    for field in fields(request):
        value = getattr(request, field.name)
        if field.name not in _NO_MATTER:
            sha256.update(f"\n{field.name}=".encode())
            sha256.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return sha256.hexdigest()


def _array(data: bytes, shape: tuple[int, ...]) -> Latents:
    values = np.frombuffer(data, "<f4").astype(np.float32).reshape(shape)
    if not np.isfinite(values).all():
        raise ValueError("not a number")
    return values
