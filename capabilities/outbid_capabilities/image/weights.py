"""Looks at weight files without loading them: is it safetensors, and is it whole. Standard library only.

A safetensors file is a length (8 bytes, little endian), a JSON map {name: {dtype, shape, data_offsets}} of that length,
and the tensors one after the other (huggingface/safetensors, README "Format"). Pickle files are never opened at all:
unpickling runs whatever code the file says.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"}

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""

NUMBER_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


class WeightsError(Exception):
    """Why a file or folder is no model to load, as a sentence."""


@dataclass(frozen=True, slots=True)
class Weights:
    """One safetensors file. `dtype` is that of most of its bytes."""

    parameters: int
    size_bytes: int
    dtype: str


def read(path: Path) -> Weights:
    """Raises WeightsError or OSError."""
    stat = path.stat()
    return _read(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _read(path: Path, size: int, mtime_ns: int) -> Weights:
    """Size and time are arguments so that a changed file is read anew."""
    entries, begin = _header(path, size)
    if not entries:
        raise WeightsError(f"{path.name} has no tensors in it")
    try:
        tensors = [_tensor(entry) for entry in entries.values()]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise WeightsError(f"{path.name} has a header that makes no sense; pull it again") from None
    whole = begin + max(end for _, _, end in tensors)
    if size < whole:
        raise WeightsError(f"{path.name} is truncated: it has {size} of {whole} bytes; pull it again")
    if size > whole:
        raise WeightsError(f"{path.name} has {size - whole} bytes too many at its end; pull it again")
    share: Counter[str] = Counter()
    for dtype, count, _ in tensors:
        share[dtype] += count * NUMBER_BYTES[dtype]
    return Weights(sum(count for _, count, _ in tensors), size, share.most_common(1)[0][0])


def _header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The map of tensors, and where their bytes begin."""
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if head == b"version ":
            raise WeightsError(f"{path.name} is a pointer of Git LFS, not the weights; run `git lfs pull` there")
        if len(head) < 8 or (length <= MAX_HEADER_BYTES and 8 + length > size):
            raise WeightsError(f"{path.name} is truncated: it has {size} bytes, fewer than its header; pull it again")
        if length > MAX_HEADER_BYTES:
            raise WeightsError(f"{path.name} is not a safetensors file: its header would have {length} bytes")
        text = file.read(length)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise WeightsError(f"{path.name} is not a safetensors file: its header is no JSON map")
    found.pop("__metadata__", None)
    return found, 8 + length


def _tensor(entry: dict[str, Any]) -> tuple[str, int, int]:
    """Its dtype, how many numbers it has, and where it ends. Raises ValueError and the like where they contradict."""
    begin, end = (int(offset) for offset in entry["data_offsets"])
    dtype, shape = entry["dtype"], [int(side) for side in entry["shape"]]
    count = math.prod(shape)
    if begin < 0 or any(side < 0 for side in shape) or end - begin != count * NUMBER_BYTES[dtype]:
        raise ValueError
    return dtype, count, end
