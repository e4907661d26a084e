"""Checkpoints as bytes: MessagePack with tensors as raw numbers. Nothing in one is ever executed.

A checkpoint of another request, model or version, or a damaged one, raises `Unreadable`; the job then starts anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
import torch

from outbid_capabilities.image.schedule import Snapshot

FORMAT = "outbid-diffusers-1"

MAX_BYTES = 8 * 2**20
"""Nodes keep no larger ones (outbid_contracts.runner.MAX_CHECKPOINT_BYTES)."""

_TENSOR, _ARRAY = 1, 2
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip


class Unreadable(Exception):
    """Why a checkpoint is of no use here, as the end of a sentence."""


class Unsaveable(Exception):
    """A scheduler with a state that is more than numbers."""


def pack(digest: str, step: int, steps: int, pictures: Sequence[Snapshot | None]) -> bytes:
    """`pictures`: the snapshot of each, None for one that has no step behind it. Raises Unsaveable."""
    items = [None if picture is None else _fields(picture) for picture in pictures]
    head = {"format": FORMAT, "digest": digest, "step": step, "steps": steps}
    data: bytes = msgpack.packb(head | {"pictures": items}, default=_encode, strict_types=True)
    if len(data) > MAX_BYTES:
        raise Unsaveable(f"a checkpoint would have {len(data) / 2**20:.0f} MiB")
    return data


def unpack(data: bytes, digest: str, count: int) -> list[Snapshot | None]:
    """What `pack` was given. Raises Unreadable."""
    try:
        found = msgpack.unpackb(data, ext_hook=_decode, strict_map_key=True)
        if found["format"] != FORMAT:
            raise Unreadable(f"it is of another kind ({found['format']!r:.60})")
        if found["digest"] != digest:
            raise Unreadable("it is of another request or model")
        pictures = [_picture(item) for item in found["pictures"]]
    except Unreadable:
        raise
    except Exception as error:  # msgpack raises half a dozen kinds, and a map may have any form
        raise Unreadable(f"it is damaged ({type(error).__name__})") from None
    if len(pictures) != count:
        raise Unreadable(f"it has {len(pictures)} pictures instead of {count}")
    return pictures


def _fields(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "step": snapshot.step,
        "steps": snapshot.steps,
        "outputs": list(snapshot.outputs),
        "scheduler": snapshot.scheduler if snapshot.step < snapshot.steps else {},
        "generator": snapshot.generator,
        "blanks": snapshot.blanks,
    }


def _picture(item: Any) -> Snapshot | None:
    if item is None:
        return None
    outputs, step, steps = item["outputs"], item["step"], item["steps"]
    sound = (
        type(step) is int
        and type(steps) is int
        and 0 < step <= steps
        and isinstance(outputs, list)
        and 0 < len(outputs) < 4
        and all(isinstance(output, torch.Tensor) for output in outputs)
        and all(isinstance(item[name], dict) for name in ("scheduler", "blanks"))
        and isinstance(item["generator"], torch.Tensor)
        and item["generator"].dtype == torch.uint8
    )
    if not sound:
        raise ValueError("fields of the wrong type")
    return Snapshot(**item | {"outputs": tuple(outputs)})


def _encode(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return msgpack.ExtType(_TENSOR, msgpack.packb([dtype, list(value.shape), _order(value), raw]))
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        head = [value.dtype.str, list(value.shape), np.ascontiguousarray(value).tobytes()]
        return msgpack.ExtType(_ARRAY, msgpack.packb(head))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple):
        return list(value)
    raise Unsaveable(f"its state has a {type(value).__name__}")


def _decode(code: int, data: bytes) -> Any:
    dtype, shape, *order, raw = msgpack.unpackb(data)
    if any(type(side) is not int or side < 0 for side in shape):
        raise ValueError("shape")
    if code == _ARRAY:
        kind = np.dtype(dtype)
        if kind.kind not in "fiub":
            raise ValueError("dtype")
        return np.frombuffer(raw, dtype=kind).reshape(shape).copy()
    if code != _TENSOR:
        raise ValueError("type")
    kind = _DTYPES[dtype]
    if len(raw) != math.prod(shape) * kind.itemsize:
        raise ValueError("size")
    if sorted(order[0]) != list(range(len(shape))):
        raise ValueError("order")
    found = torch.empty_permuted(shape, order[0], dtype=kind)
    if raw:
        found.copy_(torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(kind).reshape(shape))
    return found


def _order(value: torch.Tensor) -> list[int]:
    """The dimensions as they follow each other in memory. Kernels choose by it, and each sums up in its own way: with
    latents in another order the picture would differ in its last bits.
    """
    return sorted(range(value.ndim), key=lambda dim: -value.stride(dim))
