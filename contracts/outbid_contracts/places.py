"""Where a node keeps its things, and the file by which programs on the same machine find it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import platformdirs

from outbid_contracts.ids import NodeId

NODE_FILE = "node.json"


class LocalNode(msgspec.Struct, frozen=True, kw_only=True):
    """`node.json` in the state folder, 0600: how local programs reach the running daemon. Removed at a clean stop."""

    node: NodeId
    name: str
    url: str
    pid: int
    version: str
    creds: str = ""
    """The file with credentials for programs of this user on this machine (role admin)."""


def state_dir(explicit: str | os.PathLike[str] | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """`explicit`, else OUTBID_STATE, else the platform's folder for a user's state."""
    chosen = explicit or environ.get("OUTBID_STATE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_state_path("outbid", appauthor=False)


def keyring_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """OUTBID_KEYRING, else `meshes` in the platform's folder for a user's data: where this user's mesh keys are."""
    chosen = environ.get("OUTBID_KEYRING")
    return Path(chosen).expanduser() if chosen else platformdirs.user_data_path("outbid", appauthor=False) / "meshes"


def config_file(state: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """OUTBID_CONFIG, else `config.toml` in the state folder if there is one, else the one in the platform's config
    folder.
    """
    if chosen := environ.get("OUTBID_CONFIG"):
        return Path(chosen).expanduser()
    beside = state / "config.toml"
    return beside if beside.exists() else platformdirs.user_config_path("outbid", appauthor=False) / "config.toml"
