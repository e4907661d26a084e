"""The files of a pull on the disk: pieces written in any order, checked in order, one pass for pieces and whole.

The check of piece n is the SHA-256 of everything up to its end, so the last one is that of the file
(`ManifestReply.digests`). A thread of its own reads what is written and computes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from outbid_contracts.errors import ChecksumMismatch, NoSpace, OutbidError, PullFailed
from outbid_contracts.files import PIECE_BYTES, ModelPart
from outbid_node.files import checks, positioned
from outbid_node.files.pieces import Piece, Pieces, Stopped
from outbid_node.files.plan import Plan, PlannedFile
from outbid_node.files.store import Unfinished

log = logging.getLogger(__name__)

_NUMBER = struct.Struct("<I")
_FLAGS = os.O_CREAT | getattr(os, "O_BINARY", 0)
_READ_BYTES = 1024 * 1024
_GIT_BYTES = 64 * 1024 * 1024
"""Git's own hash is looked at for small files only; the large ones have a SHA-256."""

FRESH = 8
"""Pieces that are kept in memory until they are checked; of others what is on the disk is read."""

MISTRUST = 3
"""So many sources that sent the same wrong piece: it is the digests that are wrong."""


class Assembly:
    """`on_wrong(source)`: it sent wrong bytes. `parts` and `digests` are filled while files turn out to be right."""

    def __init__(self, plan: Plan, unfinished: Unfinished, digests: Mapping[str, bytes]) -> None:
        """Blocking: looks at what is there. Raises OutbidError where the folder cannot be written."""
        self.plan = plan
        self.unfinished = unfinished
        self.pieces = Pieces([file.size for file in plan.files])
        self.parts: list[ModelPart] = []
        self.digests: dict[str, bytes] = {}
        self.checked = 0
        self.failure: OutbidError | None = None
        self.finished = threading.Event()
        self.on_wrong: Callable[[str], None] = lambda source: None
        self.on_end: Callable[[], None] = lambda: None
        self._known = {file.path: digests.get(file.sha256, b"") for file in plan.files}
        self._files: list[int] = []
        self._journals: list[int] = []
        self._closed = False
        try:
            for number, file in enumerate(plan.files):
                self._open(number, file)
        except OSError as error:
            self.close()
            raise _storage(error, unfinished.folder) from error
        self._wrong: dict[int, int] = {}
        self._fresh: dict[int, bytes | bytearray | memoryview] = {}
        self._thread = threading.Thread(target=self._check_all, name="outbid pull check", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """After the sources have ended."""
        self.pieces.stop()
        thread = getattr(self, "_thread", None)
        if thread is not None and thread.is_alive():
            thread.join()
        self._closed = True
        for handle in (*self._files, *self._journals):
            os.close(handle)
        self._files, self._journals = [], []

    def write(self, piece: Piece, data: bytes | bytearray | memoryview, source: str) -> None:
        """`data` is not to be changed afterwards. Raises NoSpace or PullFailed. What is here already is left alone."""
        if len(data) != piece.length or not self.pieces.begin_write(piece):
            return
        try:
            _write_at(self._files[piece.file], data, piece.offset)
            os.write(self._journals[piece.file], _NUMBER.pack(piece.index))
        except OSError as error:
            self.pieces.unwritten(piece)
            raise _storage(error, self.unfinished.folder) from error
        except BaseException:
            self.pieces.unwritten(piece)
            raise
        if piece.number in self._fresh or len(self._fresh) < FRESH:
            self._fresh[piece.number] = data
        self.pieces.written(piece, source)

    def read(self, file: int, offset: int, length: int) -> bytes | None:
        """For other nodes, while this one is still at it; None if a piece of that is not here. Raises OSError."""
        wanted = [p for p in self.pieces.of(file) if p.offset < offset + length and p.offset + p.length > offset]
        if self._closed or not wanted or not all(map(self.pieces.is_here, wanted)):
            return None
        path = self.unfinished.file(self.plan.files[file].path)
        with path.open("rb") as data:
            data.seek(offset)
            return data.read(length)

    def _open(self, number: int, file: PlannedFile) -> None:
        path, journal = self.unfinished.file(file.path), self.unfinished.journal(number)
        if not path.exists() or path.stat().st_size != file.size:
            journal.unlink(missing_ok=True)
            path.touch()
        self._files.append(os.open(path, (os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY) | _FLAGS, 0o644))
        if path.stat().st_size != file.size:
            os.ftruncate(self._files[-1], file.size)
        self._journals.append(os.open(journal, os.O_RDWR | os.O_APPEND | _FLAGS, 0o644))
        known, pieces = journal.read_bytes(), self.pieces.of(number)
        for (index,) in _NUMBER.iter_unpack(known[: len(known) // 4 * 4]):
            if index < len(pieces) and self.pieces.begin_write(pieces[index]):
                self.pieces.written(pieces[index], "disk")

    # -- checking -------------------------------------------------------------------------------------------------

    def _check_all(self) -> None:
        try:
            for number, file in enumerate(self.plan.files):
                self._check(number, file)
            self.finished.set()
        except Stopped:
            pass
        except OutbidError as error:
            self.failure = error
        except Exception as error:
            log.exception("checking a model failed", extra={"action": "pull_check_failed"})
            self.failure = PullFailed(f"the files could not be checked: {error}")
        finally:
            self.on_end()

    def _check(self, number: int, file: PlannedFile) -> None:
        known = self._known[file.path]
        pieces = self.pieces.of(number)
        if len(known) != 32 * len(pieces) or (file.sha256 and known[-32:].hex() != file.sha256):
            known = b""
        whole, found, at = hashlib.sha256(), bytearray(), 0
        while at < len(pieces):
            piece = pieces[at]
            source = self.pieces.wait_for(piece)
            sofar = whole.copy()
            self._add(sofar, number, piece)
            digest = sofar.digest()
            if known and digest != known[at * 32 : at * 32 + 32]:
                if self._refuse(piece, source):
                    known = b""
                continue
            whole, at = sofar, at + 1
            found += digest
            self.checked += piece.length
        self._accept(number, file, whole.hexdigest(), bytes(found))

    def _add(self, digest: hashlib._Hash, number: int, piece: Piece) -> None:
        if (fresh := self._fresh.pop(piece.number, None)) is not None:
            digest.update(fresh)
            return
        for offset in range(piece.offset, piece.offset + piece.length, _READ_BYTES):
            data = _read_at(self._files[number], min(_READ_BYTES, piece.offset + piece.length - offset), offset)
            digest.update(data)

    def _refuse(self, piece: Piece, source: str) -> bool:
        """Drop who sent it and what else came from there. True if by now the digests are to blame instead."""
        log.warning(
            "%s sent wrong bytes for %s", source, self.plan.files[piece.file].path, extra={"action": "pull_wrong_piece"}
        )
        self._wrong[piece.number] = self._wrong.get(piece.number, 0) + 1
        self.pieces.refuse(piece)
        if source not in ("disk", "internet"):
            self.pieces.refuse_from(source, piece)
            self.on_wrong(source)
        return self._wrong[piece.number] >= MISTRUST

    def _accept(self, number: int, file: PlannedFile, sha256: str, digests: bytes) -> None:
        path = self.unfinished.file(file.path)
        try:
            if file.sha256 and sha256 != file.sha256:
                raise ChecksumMismatch(
                    f"{file.path} is not what was promised: its SHA-256 is {sha256}, it should be {file.sha256}. It "
                    "was thrown away"
                )
            if file.git and file.size <= _GIT_BYTES and _git(path) != file.git:
                raise ChecksumMismatch(f"{file.path} is not what the hub promised. It was thrown away")
            checks.check(path, file.path)
        except PullFailed:
            with contextlib.suppress(OSError):
                self.unfinished.journal(number).unlink()
            raise
        self.parts.append(ModelPart(path=file.path, size=file.size, sha256=sha256))
        self.digests[sha256] = digests


def digests_of(path: Path) -> tuple[str, bytes]:
    """SHA-256 of a file, and those up to the end of each piece."""
    whole, found = hashlib.sha256(), bytearray()
    with path.open("rb") as data:
        while piece := data.read(PIECE_BYTES):
            whole.update(piece)
            found += whole.digest()
    return whole.hexdigest(), bytes(found)


def _git(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _write_at(handle: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = positioned.write(handle, rest, offset)
        rest, offset = rest[written:], offset + written


def _read_at(handle: int, length: int, offset: int) -> bytes:
    data = positioned.read(handle, length, offset)
    if len(data) < length:
        raise PullFailed("a file of the model became shorter while it was checked")
    return data


def _storage(error: OSError, folder: Path) -> OutbidError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"the disk of {folder} is full; what came so far is kept for the next try")
    return PullFailed(f"{folder} cannot be written: {error.strerror or error}")
