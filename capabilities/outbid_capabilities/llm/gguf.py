"""Reads the header of a GGUF file: what kind of model it is, without touching the weights.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The file may come from anywhere, so every count and
length is checked against the file's size before it is believed. Standard library only.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_KEYS = 65_536
MAX_TENSORS = 1_000_000
MAX_KEY_BYTES = 65_535
MAX_KEPT_ITEMS = 1024
"""Longer arrays (vocabularies) are passed over; per-layer figures are kept."""

MAX_HEADER_BYTES = 512 * 2**20

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_U64 = struct.Struct("<Q")
_U32 = struct.Struct("<I")


class GgufError(ValueError):
    """The file is not a GGUF file that can be read; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Header:
    """`values` holds the metadata without long arrays; `tensors` is how many there are."""

    version: int
    tensors: int
    values: dict[str, Any]
    size_bytes: int

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))

    def of(self, name: str, default: Any = None) -> Any:
        """The value of `<architecture>.<name>`."""
        return self.values.get(f"{self.architecture}.{name}", default)


def read(path: Path) -> Header:
    """Read the header. Raises GgufError, or OSError where the file cannot be opened."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < 24:
            raise GgufError(f"too short for a GGUF file ({size} bytes)")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, size).header()


class _Reader:
    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._data, self._size, self._at = data, size, 0

    def header(self) -> Header:
        if self._take(4) != b"GGUF":
            raise GgufError("not a GGUF file (it does not begin with `GGUF`)")
        version = self._u32()
        if version not in (2, 3):
            raise GgufError(f"GGUF version {version} is not supported (2 and 3 are)")
        tensors, keys = self._count(MAX_TENSORS, "tensors"), self._count(MAX_KEYS, "keys")
        values = dict(self._pair() for _ in range(keys))
        self._check_tensors(tensors, values)
        return Header(version, tensors, {k: v for k, v in values.items() if v is not None}, self._size)

    def _pair(self) -> tuple[str, Any]:
        return self._string(MAX_KEY_BYTES, "key"), self._value(self._u32())

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])
        if kind == _STRING:
            return self._string(self._size, "string")
        if kind == _ARRAY:
            return self._array(self._u32())
        raise GgufError(f"unknown value type {kind} at byte {self._at}")

    def _array(self, kind: int) -> list[Any] | None:
        """The items, or None for an array too long to be worth keeping."""
        n = self._u64()
        if kind == _STRING:
            self._need(8 * n)
            if n <= MAX_KEPT_ITEMS:
                return self._many(n, lambda: self._string(self._size, "string"))
            self._pass(n)
            return None
        if kind not in _SCALARS:
            raise GgufError(f"array of unknown type {kind} at byte {self._at}")
        width = struct.calcsize(_SCALARS[kind])
        self._need(n * width)
        if n > MAX_KEPT_ITEMS:
            self._at += n * width
            return None
        return self._many(n, lambda: self._unpack(_SCALARS[kind]))

    def _many(self, n: int, one: Callable[[], Any]) -> list[Any]:
        return [one() for _ in range(n)]

    def _pass(self, n: int) -> None:
        """Step over n strings; a vocabulary has hundreds of thousands, so this is a tight loop."""
        at, data, unpack = self._at, self._data, _U64.unpack_from
        try:
            for _ in range(n):
                at += 8 + unpack(data, at)[0]
        except (struct.error, OverflowError):  # a length beyond the file, or beyond any address
            at = self._size + 1
        if at > self._size:
            raise GgufError(f"cut off inside a list of strings ({self._size} bytes are there)")
        self._at = at

    def _check_tensors(self, tensors: int, values: dict[str, Any]) -> None:
        """The last tensor must begin inside the file: a broken download fails here and not while loading."""
        last = -1
        for _ in range(tensors):
            self._string(MAX_KEY_BYTES, "tensor name")
            self._skip(8 * self._count_u32(8, "dimensions") + 4)
            last = max(last, self._u64())
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise GgufError(f"alignment {alignment!r} makes no sense")
        needed = -(-self._at // alignment) * alignment + last
        if needed >= self._size and last >= 0:
            raise GgufError(f"cut off: its tensors reach beyond byte {needed}, the file has {self._size}")

    def _string(self, most: int, what: str) -> str:
        n = self._u64()
        if n > most:
            raise GgufError(f"{what} of {n} bytes at byte {self._at}")
        return self._take(n).decode("utf-8", "replace")

    def _count(self, most: int, what: str) -> int:
        n = self._u64()
        if n > most:
            raise GgufError(f"{n} {what} cannot be")
        return n

    def _count_u32(self, most: int, what: str) -> int:
        n = self._u32()
        if n > most:
            raise GgufError(f"{n} {what} cannot be")
        return n

    def _unpack(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize(code)))[0]

    def _u32(self) -> int:
        return int(_U32.unpack(self._take(4))[0])

    def _u64(self) -> int:
        return int(_U64.unpack(self._take(8))[0])

    def _take(self, n: int) -> bytes:
        self._need(n)
        begin, self._at = self._at, self._at + n
        return self._data[begin : self._at]

    def _skip(self, n: int) -> None:
        self._need(n)
        self._at += n

    def _need(self, n: int) -> None:
        if n > self._size - self._at or self._at > MAX_HEADER_BYTES:
            raise GgufError(f"cut off: {n} bytes wanted at byte {self._at}, the file has {self._size}")
