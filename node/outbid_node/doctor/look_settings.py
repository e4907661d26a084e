"""The configuration, the mesh key, and what this machine could do with them."""

from __future__ import annotations

import logging
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from outbid_contracts.capability import Capability, Machine
from outbid_contracts.errors import InvalidConfig, OutbidError
from outbid_node import declarations
from outbid_node.catalogue import Catalogue, Entry
from outbid_node.config import Config, Effective
from outbid_node.doctor.facts import Key, Settings, Work
from outbid_node.estimating.speeds import Speeds
from outbid_node.files.store import Store, models_folder
from outbid_node.home import Home
from outbid_node.identity.keyring import Keyring
from outbid_node.identity.keys import MeshKey
from outbid_node.joining import membership


class Notebook(logging.Handler):
    """Keeps what is logged instead of printing it: some of it is what we are here to find out."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)

    def of(self, action: str) -> list[logging.LogRecord]:
        return [record for record in self._records if getattr(record, "action", "") == action]


def look_at_settings(
    load: Callable[[Mapping[str, Capability]], tuple[Path, Effective]], notebook: Notebook
) -> tuple[Settings, dict[str, Capability]]:
    """`load` reads the configuration. The declarations are empty where they contradict each other."""
    declared: dict[str, Capability] = {}
    try:
        declared = declarations.load()
        _, effective = load(declared)
    except InvalidConfig as error:
        return Settings(error=error.message), declared
    broken = tuple(f"{record.getMessage()}" for record in notebook.of("capability_broken"))
    file = str(effective.file) if effective.file else ""
    return Settings(config=effective.config, file=file, warnings=(*effective.warnings, *broken)), declared


def look_at_key(state: Path, config: Config, keyring: Keyring) -> Key:
    """Reads only: a daemon would make a key that is not there, and close one that is open."""
    try:
        member = membership.load(state)
    except OutbidError as error:
        return Key(mesh="", error=error.message)
    mesh = member.mesh if member else config.mesh.name
    file = keyring.folder / f"{mesh}.key"
    return Key(
        mesh=mesh,
        exists=file.exists(),
        loose=str(file) if _is_loose(file) else "",
        error=_why_unusable(file),
        member=member is not None,
        open=member is not None and member.open,
        peers=member.peers if member else (),
    )


def _is_loose(file: Path) -> bool:
    return sys.platform != "win32" and file.exists() and bool(stat.S_IMODE(file.stat().st_mode) & 0o077)


def _why_unusable(file: Path) -> str:
    try:
        MeshKey.from_text(file.read_text("ascii"))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        return f"the mesh key {file} cannot be used: {error}; put back a copy of it, or move it away and join again"
    return ""


def look_at_work(
    state: Path, config: Config, declared: Mapping[str, Capability], notebook: Notebook
) -> tuple[Work, ...]:
    """Every capability as the daemon's own catalogue sees it, but those for tests while they are off."""
    store = Store(models_folder(config.models.folder, Home(state)))
    pulled = [str(kept.folder) for kept in store.kept()]
    catalogue = Catalogue(declared, config.capabilities, Speeds(), Machine(), pulled=pulled)
    unusable = dict(map(_unusable, notebook.of("model_unusable")))
    return tuple(
        _work(name, entry, unusable)
        for name, entry in catalogue.entries.items()
        if not (entry.missing and name.startswith("test."))
    )


def _unusable(record: logging.LogRecord) -> tuple[str, str]:
    arguments: Any = record.args
    return str(arguments[0]), str(arguments[1])


def _work(name: str, entry: Entry, unusable: Mapping[str, str]) -> Work:
    folders = [str(Path(path).expanduser()) for path in named_models(entry.settings)]
    broken = {
        path: why for path, why in unusable.items() if any(Path(path).is_relative_to(folder) for folder in folders)
    }
    return Work(name=name, missing=entry.missing, models=tuple(entry.models), broken=broken)


def named_models(settings: Mapping[str, Any]) -> list[str]:
    """The files and folders in a capability's setting `models`, if it has one."""
    models = settings.get("models")
    return [str(model) for model in models] if isinstance(models, list | tuple) else []
