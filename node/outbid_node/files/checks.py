"""Whether a finished file is what its name says. The node only looks at the frame; the runner checks the rest."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from outbid_contracts.errors import PullFailed

MAX_HEADER_BYTES = 100 * 2**20
"""Of a safetensors file, as its own library has it."""


def check(file: Path, name: str) -> None:
    """Raises PullFailed."""
    lower = name.lower()
    if lower.endswith(".gguf"):
        _gguf(file, name)
    elif lower.endswith(".safetensors"):
        _safetensors(file, name)
    elif lower.endswith(".json"):
        _json(file, name)


def _gguf(file: Path, name: str) -> None:
    with file.open("rb") as data:
        if data.read(4) != b"GGUF" or file.stat().st_size < 24:
            raise PullFailed(f"{name} is not a GGUF file{_looks_like(file)}")


def _safetensors(file: Path, name: str) -> None:
    """Eight bytes with the length of the header, the header as JSON, then the tensors without a gap to the end."""
    size = file.stat().st_size
    with file.open("rb") as data:
        start = data.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise PullFailed(f"{name} is not a safetensors file, or cut off{_looks_like(file)}")
        end = _tensors_end(data.read(length), name)
    if 8 + length + end != size:
        raise PullFailed(f"{name} is damaged: its header promises {8 + length + end} bytes, it has {size}")


def _tensors_end(header: bytes, name: str) -> int:
    try:
        tensors: Any = json.loads(header)
        return max((int(it["data_offsets"][1]) for key, it in tensors.items() if key != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise PullFailed(f"{name} is not a safetensors file: its header cannot be read ({error})") from error


def _json(file: Path, name: str) -> None:
    try:
        json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PullFailed(f"{name} is not JSON: {error}{_looks_like(file)}") from error


def _looks_like(file: Path) -> str:
    with file.open("rb") as data:
        start = data.read(200).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "; it is a web page, perhaps one that asks you to log in"
    return "; it is only a pointer of Git LFS" if start.startswith(b"version https://git-lfs") else ""
