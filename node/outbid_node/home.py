"""A node's state folder: one daemon at a time, its identity, and the file by which local programs find it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import filelock
import msgspec

from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import NodeId, is_node_id, new_node_id
from outbid_contracts.places import NODE_FILE, LocalNode, state_dir
from outbid_node.joining.sealed import new_private


class StateUnusable(OutbidError):
    """The state folder cannot be used; name another with --state DIR or OUTBID_STATE."""

    code = "state_unusable"


class StateInUse(StateUnusable):
    """Another daemon uses this state folder."""

    code = "state_in_use"


class NodeSelf(msgspec.Struct, frozen=True, kw_only=True):
    """A node's own id, and the private key (hex) of the boxes that are sealed for it."""

    node: NodeId
    box: str


class Home:
    """The state folder, locked while this object is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = filelock.FileLock(path / "lock")

    @property
    def is_usual(self) -> bool:
        """Whether this is the folder that is used where none is named."""
        return self.path.absolute() == state_dir(environ={}).absolute()

    def open(self) -> None:
        """Create and lock the folder (0700). Raises StateInUse naming the process that has it, StateUnusable."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)
            self._lock.acquire(blocking=False)
        except filelock.Timeout as error:
            raise StateInUse(_who_has(self.path)) from error
        except OSError as error:
            raise StateUnusable(f"{self.path}: {error.strerror or error}; name another with --state DIR") from error

    def close(self) -> None:
        (self.path / NODE_FILE).unlink(missing_ok=True)
        self._lock.release()

    def identity(self) -> NodeSelf:
        """Who this node is, made up at first start. Raises StateUnusable if it cannot be kept."""
        file = self.path / "identity.json"
        with contextlib.suppress(OSError, msgspec.DecodeError, ValueError):
            known = msgspec.json.decode(file.read_bytes(), type=NodeSelf)
            if is_node_id(known.node) and len(bytes.fromhex(known.box)) == 32:
                return known
        made = NodeSelf(node=new_node_id(), box=new_private().hex())
        with contextlib.suppress(OSError):
            self.path.mkdir(parents=True, exist_ok=True)
        _write_private(file, msgspec.json.encode(made))
        return made

    def announce(self, local: LocalNode) -> None:
        """Write `node.json`, from which faces on this machine learn where to connect."""
        _write_private(self.path / NODE_FILE, msgspec.json.format(msgspec.json.encode(local)))


def _write_private(file: Path, data: bytes) -> None:
    """Replace `file` atomically, readable by its owner only."""
    beside = file.with_name(file.name + ".new")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(file)
    except OSError as error:
        raise StateUnusable(f"{file} cannot be written: {error.strerror or error}; free some space") from error


def _who_has(path: Path) -> str:
    try:
        local = msgspec.json.decode((path / NODE_FILE).read_bytes(), type=LocalNode)
    except (OSError, msgspec.DecodeError):
        return f"another daemon is using {path}; give each its own with --state DIR"
    return f"node {local.name} (pid {local.pid}) is using {path}; stop it, or give this one its own with --state DIR"
