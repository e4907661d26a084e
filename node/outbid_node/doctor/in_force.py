"""The configuration of a running node: as it travels in `Vitals`, or as its command line asked for it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from outbid_contracts.capability import Capability
from outbid_contracts.errors import InvalidConfig
from outbid_node.config import SECTIONS, Config, keys, load, sections
from outbid_node.config_cli import add_flags, flags_from
from outbid_node.config_values import note


def told(config: Config, declared: Mapping[str, Capability]) -> dict[str, dict[str, Any]]:
    """Every value by section and key, without those that are declared secret."""
    secret = {key for key, kind in keys(sections(declared)).items() if note(kind, "secret")}
    holders = {name: getattr(config, name) for name in SECTIONS} | config.capabilities
    return {section: _values(section, holder, secret) for section, holder in holders.items()}


def _values(section: str, holder: msgspec.Struct, secret: set[str]) -> dict[str, Any]:
    values = msgspec.structs.asdict(holder)
    return {name: msgspec.to_builtins(value) for name, value in values.items() if f"{section}.{name}" not in secret}


def restored(said: Mapping[str, Mapping[str, Any]], declared: Mapping[str, Capability]) -> Config:
    """What `told` told. Keys that this version does not know (the node runs another) are left out, secrets have their
    defaults. Raises msgspec.ValidationError where a value is none that this version allows.
    """
    built = {name: _section(kind, said.get(name, {})) for name, kind in sections(declared).items()}
    ours: dict[str, Any] = {name: built.pop(name) for name in SECTIONS}
    return Config(**ours, capabilities=built)


def _section(kind: type[msgspec.Struct], said: Mapping[str, Any]) -> msgspec.Struct:
    known = {field.name for field in msgspec.structs.fields(kind)}
    return msgspec.convert({name: value for name, value in said.items() if name in known}, kind)


def asked_for(command: Sequence[str], state: Path, declared: Mapping[str, Capability]) -> Config | None:
    """The configuration of `outbid up` with this command line, in this process's environment. None where it is not
    that, or not valid.
    """
    if "up" not in command:
        return None
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    add_flags(parser)
    with suppress(InvalidConfig, argparse.ArgumentError):
        given, _ = parser.parse_known_args(command[list(command).index("up") + 1 :])
        file = Path(given.config).expanduser() if given.config else None
        return load(state, file, os.environ, flags_from(given), declared).config
    return None
