"""The folder of pulled models: one folder for each, whole if it has a manifest; what is under way is in `.pulling`."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import msgspec
import platformdirs

from outbid_contracts.errors import InvalidRequest, UnknownModel
from outbid_contracts.files import MANIFEST_FILE, Manifest, is_model_name
from outbid_node.files.plan import Plan
from outbid_node.files.source import relative
from outbid_node.home import Home

log = logging.getLogger(__name__)

DIGESTS_FILE = "outbid-pieces"
"""Beside the manifest: `ManifestReply.digests`, MessagePack."""

UNFINISHED = ".pulling"
_PLAN = "plan.json"
_READABLE = (OSError, msgspec.DecodeError, msgspec.ValidationError, InvalidRequest)


def models_folder(setting: str, home: Home) -> Path:
    """`models.folder`; by default among the user's data, but with the state where that has a folder of its own."""
    if setting:
        return Path(setting).expanduser()
    return (platformdirs.user_data_path("outbid", appauthor=False) if home.is_usual else home.path) / "models"


@dataclass(frozen=True, slots=True)
class Kept:
    """A whole model."""

    folder: Path
    manifest: Manifest


class Store:
    """Blocking. Several daemons may share a folder: what they finish appears whole, by a rename."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def kept(self) -> list[Kept]:
        """The oldest first, so that the default model stays what it was."""
        found = []
        with contextlib.suppress(OSError):
            for folder in self.folder.iterdir():
                if not folder.name.startswith(".") and (manifest := self._manifest(folder)) is not None:
                    found.append(Kept(folder, manifest))
        return sorted(found, key=lambda it: (it.manifest.pulled_ms, it.manifest.name))

    def find(self, name: str) -> Kept | None:
        if not is_model_name(name):
            return None
        manifest = self._manifest(self.folder / name)
        return Kept(self.folder / name, manifest) if manifest else None

    def digests(self, kept: Kept) -> dict[str, bytes]:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return msgspec.msgpack.decode((kept.folder / DIGESTS_FILE).read_bytes(), type=dict[str, bytes])
        return {}

    def begin(self, source: str, variant: str) -> Unfinished:
        """Where this source is being put together, with what came of it before."""
        digest = hashlib.sha256(f"{source}\n{variant}".encode()).hexdigest()[:24]
        return Unfinished(self.folder / UNFINISHED / digest)

    def finish(self, unfinished: Unfinished, manifest: Manifest, digests: dict[str, bytes]) -> Kept:
        """From now on it is there. What it is made of is on the disk before the name is."""
        content = unfinished.content
        for part in manifest.files:
            _sync(content / part.path)
        _write(content / DIGESTS_FILE, msgspec.msgpack.encode(digests))
        _write(content / MANIFEST_FILE, msgspec.json.format(msgspec.json.encode(manifest)))
        to = self.folder / manifest.name
        if to.exists() and self._manifest(to) is None:
            raise InvalidRequest(f"{to} is in the way and is no model; remove it, or choose another --name")
        content.rename(to)
        _sync(self.folder)
        unfinished.discard()
        return Kept(to, manifest)

    def remove(self, name: str) -> Kept:
        """Raises UnknownModel. The manifest goes first: half a model is none."""
        kept = self.find(name)
        if kept is None:
            raise UnknownModel(f"no model {name!r} was pulled to this node; `outbid models` shows which were")
        (kept.folder / MANIFEST_FILE).unlink()
        shutil.rmtree(kept.folder, ignore_errors=True)
        return kept

    def _manifest(self, folder: Path) -> Manifest | None:
        """None if there is none that can be used."""
        file = folder / MANIFEST_FILE
        try:
            manifest = msgspec.json.decode(file.read_bytes(), type=Manifest)
            for part in manifest.files:
                if (folder / relative(part.path)).stat().st_size != part.size:
                    raise InvalidRequest(f"{part.path} does not have the size it should")
        except FileNotFoundError:
            return None
        except _READABLE as error:
            log.warning("%s is left out: %s", folder, error, extra={"action": "pulled_model_unusable"})
            return None
        return msgspec.structs.replace(manifest, name=folder.name)


class Unfinished:
    """The folder of one pull: the plan, the files so far, and for each of them which pieces of it are there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content = folder / "content"

    def plan(self) -> Plan | None:
        with contextlib.suppress(*_READABLE):
            return msgspec.json.decode((self.folder / _PLAN).read_bytes(), type=Plan)
        return None

    def keep_plan(self, plan: Plan) -> None:
        """What came of files that are other ones now is thrown away."""
        known = self.plan()
        before = {file.path: file for file in known.files} if known else {}
        self.folder.mkdir(parents=True, exist_ok=True)
        for n, file in enumerate(plan.files):
            was = before.get(file.path)
            if was is None or not was.is_same(file) or known is None or known.files.index(was) != n:
                self.forget(n, file.path)
        _write(self.folder / _PLAN, msgspec.json.encode(plan))

    def file(self, path: str) -> Path:
        place = self.content / relative(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def journal(self, number: int) -> Path:
        return self.folder / f"{number}.have"

    def mark_whole(self, number: int, pieces: int) -> None:
        """The file was put there at once."""
        self.journal(number).write_bytes(struct.pack(f"<{pieces}I", *range(pieces)))

    def forget(self, number: int, path: str) -> None:
        self.journal(number).unlink(missing_ok=True)
        self.file(path).unlink(missing_ok=True)

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _write(file: Path, data: bytes) -> None:
    beside = file.with_name(file.name + ".new")
    with beside.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(file)


def _sync(path: Path) -> None:
    """A folder cannot be synced on Windows."""
    with contextlib.suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
