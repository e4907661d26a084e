"""A file or folder of this machine."""

from __future__ import annotations

import os
from pathlib import Path

from outbid_contracts.errors import InvalidRequest, PullFailed
from outbid_node.files.choosing import INDEX, choose
from outbid_node.files.plan import MAX_FILES, Listed, Listing, Plan, PlannedFile
from outbid_node.files.source import Local, refuse_pickle

MAX_INDEX_BYTES = 1024 * 1024


def plan(source: Local, sha256: str = "", variant: str = "") -> Plan:
    """Blocking. Raises InvalidRequest, PullFailed."""
    path = source.path
    try:
        if path.is_dir():
            listing = _listing(source)
            kind, chosen = choose(listing, "", variant)
        else:
            refuse_pickle(path.name)
            listing = Listing(str(source), [Listed(path=path.name, size=path.stat().st_size)])
            kind, chosen = choose(listing, path.name)
    except OSError as error:
        raise PullFailed(f"{path} cannot be read: {error.strerror or error}") from error
    if sha256 and len(chosen) > 1:
        raise InvalidRequest("--sha256 is for a single file")
    return Plan(
        source=str(source),
        kind=kind,
        files=tuple(PlannedFile(path=it.path, size=it.size or 0, sha256=sha256) for it in chosen),
    )


def bring(source: Local, path: str, to: Path) -> None:
    """Hard-linked where that can be, else copied."""
    place = source.path / path if source.path.is_dir() else source.path
    to.unlink(missing_ok=True)
    try:
        os.link(place.resolve(), to)
    except OSError:
        _copy(place, to)


def _copy(place: Path, to: Path) -> None:
    with place.open("rb") as start, to.open("wb") as end:
        while chunk := start.read(4 * 2**20):
            end.write(chunk)


def _listing(source: Local) -> Listing:
    files = []
    for file in sorted(source.path.rglob("*")):
        if file.is_file():
            files.append(Listed(path=file.relative_to(source.path).as_posix(), size=file.stat().st_size))
        if len(files) > MAX_FILES:
            raise InvalidRequest(f"{source.path} has more than {MAX_FILES} files; name the model's own folder")
    index = source.path / INDEX
    texts = {INDEX: index.read_bytes()} if index.is_file() and index.stat().st_size < MAX_INDEX_BYTES else {}
    return Listing(str(source), files, texts)
