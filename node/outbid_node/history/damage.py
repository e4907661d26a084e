"""A history file that cannot be used: what is wrong with it, and whether it is put aside or left alone.

DuckDB checks a sum over each block and each record of its log, so damage is an exception and not the end of the process
(120 files with random damage of seven kinds: each opened or raised).
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

KEEP_ASIDE = 2
"""So many files that were put aside are kept; older ones are deleted, because each may be as large as the history."""

_OUTSIDE = (
    "no space left",
    "not enough space",
    "disk quota",
    "permission denied",
    "read-only file system",
    "could not set lock",
    "conflicting lock",
    "too many open files",
    "cannot allocate memory",
    "out of memory",
    "already open",
    "different configuration",
)
"""Of what DuckDB says when the file itself may be sound."""

_DAMAGE = ("corrupt", "could not read enough bytes")


class Unusable(Exception):
    """There is no history for now: the message says why, for people."""


class NewerFile(Exception):
    """A later version of the program made the file."""


def is_outside(error: BaseException) -> bool:
    """The cause lies around the file: putting it aside would help nothing, or take it from who uses it."""
    text = str(error).lower()
    return any(words in text for words in _OUTSIDE)


def is_locked(error: BaseException) -> bool:
    """Another process has the file open."""
    return "could not set lock" in str(error).lower()


def is_damage(error: BaseException) -> bool:
    """What is on the disk is not what was written there."""
    text = str(error).lower()
    return any(words in text for words in _DAMAGE) and not is_outside(error)


def put_aside(file: Path, word: str) -> Path:
    """Rename the file and its log; returns its new name. Raises OSError."""
    now = time.time_ns()
    moment = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now // 10**9))}.{now % 10**9 // 1000:06d}"
    aside = file.with_name(f"{file.name}.{word}-{moment}")
    file.rename(aside)
    with contextlib.suppress(FileNotFoundError):
        log_of(file).rename(log_of(aside))
    kept = [old for old in file.parent.glob(f"{file.name}.{word}-*") if old.suffix != ".wal"]
    for old in sorted(kept, key=lambda found: found.name)[:-KEEP_ASIDE]:
        remove(old)
    return aside


def log_of(file: Path) -> Path:
    """DuckDB's write-ahead log of that file."""
    return file.with_name(f"{file.name}.wal")


def remove(file: Path) -> None:
    for path in (file, log_of(file)):
        with contextlib.suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
