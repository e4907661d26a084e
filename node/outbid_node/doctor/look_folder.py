"""The state folder and the disks: who may read it, how long a synced write takes, how much room there is."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from outbid_node.doctor.facts import Disk, Folder, Writes

SECRETS = ("identity", "identity/*.creds", "identity/*.key", "local.creds", "identity.json")
MOST_FILES = 3000
"""Files whose owner is looked at."""

WRITES = 20
WRITES_S = 1.2
RECORD = b"\0" * 512
"""About the size of a small job's record."""


def look_at_folder(state: Path) -> Folder:
    """Raises OSError where it cannot be looked at."""
    if not state.exists():
        return Folder(path=state, exists=False)
    if sys.platform == "win32":
        return Folder(path=state)
    owner = state.stat().st_uid
    return Folder(
        path=state,
        loose=tuple(_name(file, state) for file in _secrets(state) if stat.S_IMODE(file.lstat().st_mode) & 0o077),
        foreign=tuple(_name(file, state) for file, user in _owners(state) if user != owner),
        owner=_user(owner),
        user=_user(os.geteuid()),
    )


def _secrets(state: Path) -> Iterator[Path]:
    yield state
    for pattern in SECRETS:
        yield from sorted(state.glob(pattern))


def _owners(state: Path) -> Iterator[tuple[Path, int]]:
    """Of what is still there when looked at: the ledger makes and removes files all the time."""
    inside = (Path(folder) / name for folder, folders, files in os.walk(state) for name in (*folders, *files))
    for file in itertools.islice(inside, MOST_FILES):
        with suppress(OSError):
            yield file, file.lstat().st_uid


def _name(file: Path, state: Path) -> str:
    return "the folder itself" if file == state else str(file.relative_to(state))


def _user(number: int) -> str:
    if sys.platform == "win32":
        return ""
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # a container may have a number without a name
        return str(number)


def time_writes(state: Path) -> Writes:
    """Where the ledger writes, as it writes: append, and wait until it is on disk. Nothing is left behind."""
    ledger = state / "bus"
    times: list[float] = []
    try:
        with tempfile.TemporaryFile(dir=ledger if ledger.is_dir() else state, buffering=0) as file:
            until = time.perf_counter() + WRITES_S
            while len(times) < WRITES and time.perf_counter() < until:
                began = time.perf_counter()
                file.write(RECORD)
                os.fsync(file.fileno())
                times.append(time.perf_counter() - began)
    except OSError as error:
        return Writes(refused=error.strerror or str(error))
    return Writes(times_s=tuple(times))


def look_at_disks(state: Path, models: Sequence[str]) -> tuple[Disk, ...]:
    """One for the state folder, one for each further disk that holds models."""
    found = {_nearest(state).stat().st_dev: _disk(state, "state")}
    for model in models:
        path = Path(model).expanduser()
        with suppress(OSError):
            if path.exists() and (device := path.stat().st_dev) not in found:
                found[device] = _disk(path, "models")
    return tuple(found.values())


def _disk(path: Path, purpose: str) -> Disk:
    there = _nearest(path)
    usage = shutil.disk_usage(there if there.is_dir() else there.parent)
    return Disk(
        path=str(path),
        purpose="state" if purpose == "state" else "models",
        free_mib=usage.free / 2**20,
        total_mib=usage.total / 2**20,
    )


def _nearest(path: Path) -> Path:
    """It, or the folder in which it would be made."""
    return next((place for place in (path, *path.absolute().parents) if place.exists()), Path("/"))
