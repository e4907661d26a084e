"""The capabilities installed beside this node, read from entry points. No runner and no model code is imported."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import msgspec

from outbid_contracts.capability import ENTRY_POINT_GROUP, Capability
from outbid_contracts.errors import InvalidConfig
from outbid_contracts.subjects import RESERVED

_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*){1,2}")
_log = logging.getLogger(__name__)


class Declared(dict[str, Capability]):
    """All declared capabilities by name. `broken`: entries that were left out, by package and entry, and why."""

    broken: dict[str, str]


def load(entries: Iterable[EntryPoint] | None = None) -> Declared:
    """A broken entry is logged and left out.

    Raises InvalidConfig where two entries declare the same name: which of them serves it must not be left to chance.
    """
    found: dict[str, tuple[Capability, str]] = {}
    broken: dict[str, str] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP) if entries is None else entries:
        for capability in _of(entry, broken):
            if capability.name in found:
                raise InvalidConfig(
                    f"capability {capability.name!r} is declared by both {found[capability.name][1]} "
                    f"and {_where(entry)}; uninstall one of them"
                )
            found[capability.name] = capability, _where(entry)
    declared = Declared((name, capability) for name, (capability, _) in sorted(found.items()))
    declared.broken = broken
    return declared


def broken_among(declared: Mapping[str, Capability]) -> Mapping[str, str]:
    """Why entries are not among these."""
    return declared.broken if isinstance(declared, Declared) else {}


def check(capability: Any) -> Capability:
    """Raises ValueError saying what is wrong with a declaration."""
    if not isinstance(capability, Capability):
        raise ValueError(f"{capability!r} is not a Capability")
    if not _NAME.fullmatch(capability.name):
        raise ValueError(f"the name {capability.name!r} must be two or three lower-case words with dots between")
    if capability.section in RESERVED:
        raise ValueError(f"the name {capability.name!r} may not begin with {capability.section!r}: the bus uses it")
    if not re.fullmatch(r"[\w.]+:\w+", capability.runner):
        raise ValueError(f"the runner {capability.runner!r} of {capability.name} must be given as `module:Class`")
    for what in ("params", "result", "chunk", "settings"):
        _check_struct(capability, what)
    return capability


def _check_struct(capability: Capability, what: str) -> None:
    """What `nats micro` shows of it must have a schema, and settings must do without being set. Raises ValueError."""
    kind = getattr(capability, what)
    if kind is None and what in ("chunk", "settings"):
        return
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        raise ValueError(f"`{what}` of {capability.name} must be a msgspec.Struct, not {kind!r}")
    try:
        if what == "settings":
            kind()
        msgspec.json.schema(kind)
    except TypeError as error:
        raise ValueError(f"`{what}` of {capability.name} cannot be used: {error}") from error


def _of(entry: EntryPoint, broken: dict[str, str]) -> list[Capability]:
    try:
        loaded = entry.load()
        if callable(loaded):
            loaded = loaded()
        several = [loaded] if isinstance(loaded, Capability) else list(loaded)
        return [check(capability) for capability in several]
    except (Exception, SystemExit) as error:  # third-party code
        broken[_where(entry)] = f"{type(error).__name__}: {error}"
        _log.warning(
            "capability entry %s is left out: %s: %s",
            _where(entry),
            type(error).__name__,
            error,
            extra={"action": "capability_broken"},
            exc_info=True,
        )
        return []


def _where(entry: EntryPoint) -> str:
    package = entry.dist.name if entry.dist is not None else "?"
    return f"{entry.name} = {entry.value} ({package})"
