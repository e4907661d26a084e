"""What this node has to give, by the SHA-256 of files: models that are whole, and those it is just putting together."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from outbid_node.files.store import Kept


class Partial(Protocol):
    """A file of a pull under way."""

    def read(self, file: int, offset: int, length: int) -> bytes | None: ...


class Shelf:
    """Thread-safe. `read` blocks on the disk."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._whole: dict[str, Path] = {}
        self._partial: dict[str, tuple[Partial, int]] = {}

    def put_whole(self, kept: Iterable[Kept]) -> None:
        """In the place of all before."""
        whole = {part.sha256: it.folder / part.path for it in kept for part in it.manifest.files}
        with self._lock:
            self._whole = whole

    def put_partial(self, files: dict[str, int], assembly: Partial) -> None:
        """`files`: numbers by SHA-256."""
        with self._lock:
            self._partial |= {sha256: (assembly, number) for sha256, number in files.items()}

    def drop_partial(self, assembly: Partial) -> None:
        with self._lock:
            self._partial = {key: it for key, it in self._partial.items() if it[0] is not assembly}

    def has(self, sha256: str) -> bool:
        return sha256 in self._whole or sha256 in self._partial

    def read(self, sha256: str, offset: int, length: int) -> bytes | None:
        """None if it is not here (any more, or not yet), also where the file turns out to be shorter."""
        with self._lock:
            path, partial = self._whole.get(sha256), self._partial.get(sha256)
        with contextlib.suppress(OSError, ValueError):
            if path is not None:
                with path.open("rb") as file:
                    file.seek(offset)
                    data = file.read(length)
                    return data if len(data) == length else None
            if partial is not None:
                return partial[0].read(partial[1], offset, length)
        return None
