"""Where a user's mesh keys are: one file per mesh name, in a folder that belongs to the user, not to a node.

Several nodes of one user on one machine with the same mesh name are therefore of one mesh without any ceremony; the
first of them makes the key. Beside each key are the list of users whose credentials were revoked, and the names of
those who got credentials here.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import filelock
import msgspec

from outbid_contracts.errors import OutbidError
from outbid_contracts.places import keyring_dir
from outbid_node.identity.keys import MeshKey

log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 10.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


class KeyringUnusable(OutbidError):
    """The mesh key cannot be read or kept; the message names the file."""

    code = "keyring_unusable"


class KnownUser(msgspec.Struct, frozen=True, kw_only=True):
    """Whom this machine gave credentials to. `at_s`: Unix seconds."""

    name: str
    role: str
    at_s: int


class Keyring:
    """The keys in `folder` (0700, files 0600). Safe to use from several processes at once."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` None: OUTBID_KEYRING, else the platform's folder for a user's data."""
        self.folder = folder or keyring_dir()

    def key(self, mesh: str) -> MeshKey:
        """The key of the mesh that is called so here; made if there is none. Raises KeyringUnusable."""
        with self._locked(mesh):
            return self._read(mesh) or self._write(mesh, MeshKey.new())

    def find(self, mesh: str) -> MeshKey | None:
        """The key, or None if there is none. Raises KeyringUnusable if it cannot be read."""
        return self._read(mesh)

    def put(self, mesh: str, key: MeshKey) -> None:
        """Keep `key` under this name, in the place of any other; its list of revoked users begins empty."""
        with self._locked(mesh):
            if self._read(mesh) != key:
                self._revoked_file(mesh).unlink(missing_ok=True)
            self._write(mesh, key)

    def forget(self, mesh: str) -> None:
        with self._locked(mesh):
            self._file(mesh).unlink(missing_ok=True)
            self._revoked_file(mesh).unlink(missing_ok=True)
            self._people_file(mesh).unlink(missing_ok=True)

    def revoked(self, mesh: str) -> dict[str, int]:
        """Users by public key, with the time (Unix seconds) up to which their credentials are refused."""
        file = self._revoked_file(mesh)
        try:
            found = json.loads(file.read_text())
            return {str(user): int(until) for user, until in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise KeyringUnusable(
                f"{file} cannot be read ({error}); without it revoked users would come back"
            ) from error

    def revoke(self, mesh: str, users: Mapping[str, int]) -> dict[str, int]:
        """Add to the list and return the whole. Lists only grow, so nodes may merge them in any order."""
        with self._locked(mesh):
            merged = self.revoked(mesh)
            for user, until in users.items():
                merged[user] = max(until, merged.get(user, 0))
            self._save(self._revoked_file(mesh), json.dumps(merged, sort_keys=True))
            return merged

    def people(self, mesh: str) -> dict[str, KnownUser]:
        """Users by public key, also of keys that the mesh had before: past work is counted for them. Raises
        KeyringUnusable.
        """
        file = self._people_file(mesh)
        try:
            return msgspec.json.decode(file.read_bytes(), type=dict[str, KnownUser])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            raise KeyringUnusable(f"{file} cannot be read ({error}); delete it to begin a new list") from error

    def remember(self, mesh: str, user: str, known: KnownUser) -> None:
        """Raises KeyringUnusable."""
        with self._locked(mesh):
            people = self.people(mesh) | {user: known}
            self._save(self._people_file(mesh), msgspec.json.encode(people).decode())

    # -- files ---------------------------------------------------------------------------------------------------

    def _file(self, mesh: str) -> Path:
        if _NAME.match(mesh) is None:
            raise KeyringUnusable(f"the mesh name {mesh!r} is not 1 to 63 of A-Z a-z 0-9 . _ -")
        return self.folder / f"{mesh}.key"

    def _revoked_file(self, mesh: str) -> Path:
        return self._file(mesh).with_suffix(".revoked")

    def _people_file(self, mesh: str) -> Path:
        return self._file(mesh).with_suffix(".people")

    def _read(self, mesh: str) -> MeshKey | None:
        file = self._file(mesh)
        try:
            text = file.read_text("ascii")
            _make_private(file)
            return MeshKey.from_text(text)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise KeyringUnusable(
                f"the mesh key {file} cannot be used: {error}; put back a copy of it, or move it away and join the mesh"
                " again"
            ) from error

    def _write(self, mesh: str, key: MeshKey) -> MeshKey:
        self._save(self._file(mesh), key.text() + "\n")
        return key

    def _save(self, file: Path, text: str) -> None:
        """Whole or not at all, also when the power goes: a lost key is a lost mesh."""
        beside = file.with_name(file.name + ".new")
        try:
            with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            beside.replace(file)
        except OSError as error:
            raise KeyringUnusable(f"{file} cannot be written: {error.strerror or error}") from error

    @contextmanager
    def _locked(self, mesh: str) -> Iterator[None]:
        lock = self._file(mesh).with_suffix(".lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            with filelock.FileLock(lock, timeout=LOCK_TIMEOUT_S):
                yield
        except filelock.Timeout as error:
            raise KeyringUnusable(f"another program has held {lock} for {LOCK_TIMEOUT_S:.0f} s") from error
        except OSError as error:
            raise KeyringUnusable(
                f"{self.folder}: {error.strerror or error}; name another in OUTBID_KEYRING"
            ) from error


def _make_private(file: Path) -> None:
    if sys.platform != "win32" and stat.S_IMODE(file.stat().st_mode) & 0o077:
        log.warning("%s was readable by others; it no longer is", file, extra={"action": "key_made_private"})
        os.chmod(file, 0o600)  # noqa: PTH101
