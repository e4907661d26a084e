"""Where pictures go: names made from the prompt and the seed, and never over a file that nobody named."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import click

from outbid.artifacts import Artifact
from outbid.images import Picture
from outbid_contracts.errors import OutbidError, StorageFailed

SUFFIXES = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "video/mp4": ".mp4",
}

NAME_LENGTH = 40
"""Characters of the prompt in a file name."""

_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".gif": "gif", ".mp4": "mp4"}


def default_name(prompt: str, seed: int) -> str:
    """As `red-apple-42`, without a suffix.

    >>> default_name("A red apple, please!", 42)
    'a-red-apple-please-42'
    >>> default_name("../../etc/passwd", 0), default_name("???", 7)
    ('etc-passwd-0', 'picture-7')
    """
    words = re.findall(r"[^\W_]+", prompt.lower())
    slug = "-".join(words)[:NAME_LENGTH].rstrip("-")
    return f"{slug or 'picture'}-{seed}"


def format_of(out: str | None) -> str | None:
    """The format that the suffix of a file name asks for, None where it says nothing."""
    return _FORMATS.get(Path(out).suffix.lower()) if out is not None else None


def check(out: str | None) -> None:
    """Before anything is drawn: there must be a place for it. Raises click.BadParameter."""
    if out is None or out == "-":
        return
    folder = Path(out) if _is_folder(out) else Path(out).parent
    if not folder.is_dir():
        raise click.BadParameter(f"there is no folder {folder}", param_hint="-o")
    if not os.access(folder, os.W_OK):
        raise click.BadParameter(f"nothing may be written to {folder}", param_hint="-o")


async def save(pictures: Sequence[Artifact], out: str | None, prompt: str | None = None) -> list[Path]:
    """Save them all; returns the paths. `out`: a file (several get -1, -2 … after the name; replaced if it is there), a
    folder, None for the current one, or - for standard output.

    Raises StorageFailed where the disk does not take them.
    """
    if out == "-":
        await _to_stdout(pictures)
        return []
    if out is None or _is_folder(out):
        folder = Path(out or ".")
        return [await _save(one, reserve(folder, _name(one, prompt)), reserved=True) for one in pictures]
    return [await _save(one, path) for one, path in zip(pictures, numbered(Path(out), len(pictures)), strict=True)]


def numbered(path: Path, number: int) -> list[Path]:
    """One path for each picture.

    >>> [path.name for path in numbered(Path("apple.png"), 2)]
    ['apple-1.png', 'apple-2.png']
    """
    return [path] if number == 1 else [path.with_stem(f"{path.stem}-{n}") for n in range(1, number + 1)]


def reserve(folder: Path, name: str) -> Path:
    """An empty file of that name, else with -2, -3 …, that nobody had and nobody else gets. Raises StorageFailed."""
    stem, suffix = Path(name).stem, Path(name).suffix
    for n in count(1):
        path = folder / (name if n == 1 else f"{stem}-{n}{suffix}")
        try:
            path.open("xb").close()
        except FileExistsError:
            continue
        except OSError as error:
            raise _failed(path, error) from error
        return path
    raise AssertionError("there is always a next number")


def _name(one: Artifact, prompt: str | None) -> str:
    suffix = SUFFIXES.get(one.type, Path(one.name).suffix)
    if prompt is not None and isinstance(one, Picture):
        return default_name(prompt, one.seed) + suffix
    return Path(one.name).name or f"{one.id}{suffix}"


def _is_folder(out: str) -> bool:
    return out.endswith(("/", os.sep)) or Path(out).is_dir()


async def _save(one: Artifact, path: Path, *, reserved: bool = False) -> Path:
    try:
        return await one.save(path)
    except BaseException as error:
        if reserved:
            _remove(path)
        if isinstance(error, OSError):
            raise _failed(path, error) from error
        raise


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _failed(path: Path, error: OSError) -> OutbidError:
    return StorageFailed(f"{path} cannot be written: {error.strerror or error}")


async def _to_stdout(pictures: Sequence[Artifact]) -> None:
    if len(pictures) != 1:
        raise click.UsageError(f"-o - takes one picture, and there are {len(pictures)}")
    async for piece in pictures[0].stream():
        await asyncio.to_thread(sys.stdout.buffer.write, piece)
    sys.stdout.buffer.flush()
