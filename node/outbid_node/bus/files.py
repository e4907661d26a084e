"""Private files that are never seen half written, and that can still be rewritten on a full disk."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def private_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text`, mode 0600. On a full disk the old file is overwritten in place: its blocks are ours
    already, so a node that ran here once can start again.
    """
    with suppress(OSError):
        if path.read_text() == text:
            return
    fresh = path.with_name(path.name + ".new")
    try:
        _write(fresh, text)
        fresh.replace(path)
    except OSError:
        with suppress(OSError):
            fresh.unlink()
        _write(path, text)


def _write(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.truncate()


def tail(path: Path, size: int = 8192) -> str:
    """The last `size` bytes as text; empty where there is no file."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - size))
            return file.read(size).decode(errors="replace")
    except OSError:
        return ""
