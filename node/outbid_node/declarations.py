"""The capabilities installed beside this node, read from entry points. No runner and no model code is imported."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from outbid_contracts.capability import ENTRY_POINT_GROUP, Capability
from outbid_contracts.errors import InvalidConfig
from outbid_contracts.subjects import RESERVED

_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*){1,2}")
_log = logging.getLogger(__name__)


def load(entries: Iterable[EntryPoint] | None = None) -> dict[str, Capability]:
    """All declared capabilities by name. A broken entry is logged and left out.

    Raises InvalidConfig where two entries declare the same name: which of them serves it must not be left to chance.
    """
    found: dict[str, tuple[Capability, str]] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP) if entries is None else entries:
        for capability in _of(entry):
            if capability.name in found:
                raise InvalidConfig(
                    f"capability {capability.name!r} is declared by both {found[capability.name][1]} "
                    f"and {_where(entry)}; uninstall one of them"
                )
            found[capability.name] = capability, _where(entry)
    return {name: capability for name, (capability, _) in sorted(found.items())}


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
    return capability


def _of(entry: EntryPoint) -> list[Capability]:
    try:
        loaded = entry.load()
        if callable(loaded):
            loaded = loaded()
        several = [loaded] if isinstance(loaded, Capability) else list(loaded)
        return [check(capability) for capability in several]
    except Exception as error:  # third-party code
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
