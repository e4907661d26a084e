"""Configuration on the command line: the flags of `outbid up`, and `outbid config`, which prints what is in force."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from outbid_contracts.capability import Capability
from outbid_contracts.errors import InvalidConfig
from outbid_contracts.places import config_file, state_dir
from outbid_node import declarations
from outbid_node.config import Effective, Given, keys, load, sections, variable
from outbid_node.config_values import allowed, describe, note


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag that sets a key. `value` is what a flag without an argument stands for; `many` may be repeated."""

    flag: str
    key: str
    help: str
    metavar: str = ""
    many: bool = False
    value: str | None = None

    @property
    def dest(self) -> str:
        return "outbid_" + self.flag.strip("-").replace("-", "_")


FLAGS = (
    Flag("--name", "node.name", "name of this node", "NAME"),
    Flag("--mesh", "mesh.name", "name of the mesh to join", "NAME"),
    Flag("--peer", "mesh.peers", "route address of a node that multicast does not reach", "HOST:PORT", many=True),
    Flag("--port", "bus.port", "port of the ledger on loopback, or auto", "PORT"),
    Flag("--route-port", "bus.route_port", "port where other nodes connect, or auto", "PORT"),
    Flag("--log-level", "log.level", "debug, info, warning or error", "LEVEL"),
    Flag("--json-logs", "log.json", "log one JSON object per line", value="true"),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add --state, --config, --set and every flag of FLAGS."""
    parser.add_argument("--state", metavar="DIR", help="state folder of the node (OUTBID_STATE)")
    parser.add_argument("--config", metavar="FILE", help="configuration file (OUTBID_CONFIG)")
    for flag in FLAGS:
        if flag.value is not None:
            parser.add_argument(flag.flag, dest=flag.dest, action="store_true", help=flag.help)
        else:
            action = "append" if flag.many else "store"
            parser.add_argument(flag.flag, dest=flag.dest, action=action, metavar=flag.metavar, help=flag.help)
    parser.add_argument(
        "--set", dest="outbid_set", action="append", metavar="SECTION.KEY=VALUE", help="set any key (repeatable)"
    )


def flags_from(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags said, by dotted key, for `load`. `--set` wins over a flag of its own. Raises InvalidConfig."""
    found: dict[str, Any] = {}
    for flag in FLAGS:
        if value := getattr(options, flag.dest, None):
            found[flag.key] = Given(value if flag.value is None else flag.value, flag.flag)
    for text in getattr(options, "outbid_set", None) or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise InvalidConfig(f"--set {text} lacks a value; write --set section.key=value")
        found[key.strip()] = Given(value, f"--set {key.strip()}")
    return found


def load_from(options: argparse.Namespace, declared: Mapping[str, Capability]) -> tuple[Path, Effective]:
    """The state folder and the configuration that parsed flags and this process's environment ask for."""
    state = state_dir(options.state)
    file = Path(options.config).expanduser() if options.config else None
    return state, load(state, file, os.environ, flags_from(options), declared)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One key as `outbid config` shows it. Secret values are masked."""

    key: str
    value: Any
    source: str
    variable: str
    allowed: str
    description: str = ""


def rows(effective: Effective, declared: Mapping[str, Capability]) -> list[Row]:
    return [_row(key, kind, effective) for key, kind in keys(sections(declared)).items()]


def _row(key: str, kind: Any, effective: Effective) -> Row:
    section, _, name = key.partition(".")
    holder = effective.config.capabilities.get(section) or getattr(effective.config, section)
    value = getattr(holder, name)
    return Row(
        key=key,
        value="***" if value and note(kind, "secret") else msgspec.to_builtins(value),
        source=effective.sources[key],
        variable=variable(key),
        allowed=allowed(kind),
        description=describe(kind),
    )


def as_json(found: Sequence[Row], state: Path, effective: Effective) -> str:
    head = {"state": str(state), "file": str(effective.file) if effective.file else None}
    return json.dumps(head | {"settings": msgspec.to_builtins(found)}, indent=2)


def as_text(found: Sequence[Row], state: Path, effective: Effective) -> str:
    """A table of key, value and source, with what was set to the right of what was not."""
    return "\n".join(_lines(found, state, effective))


def _lines(found: Sequence[Row], state: Path, effective: Effective) -> Iterator[str]:
    read = effective.file or f"none ({config_file(state)} would be read)"
    yield f"state folder  {state}"
    yield f"file          {read}"
    yield ""
    cells = [(row.key, json.dumps(row.value, ensure_ascii=False), row.source) for row in found]
    widths = [max(len(row[column]) for row in cells) for column in (0, 1)]
    for key, value, source in cells:
        yield f"{key:{widths[0]}}  {value:{min(widths[1], 40)}}  {source}"


def main_config(argv: Sequence[str]) -> int:
    """`outbid config`: print the configuration in force and where each value came from. 2 where it is not valid."""
    parser = argparse.ArgumentParser(prog="outbid config", description=main_config.__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_flags(parser)
    options = parser.parse_args(argv)
    try:
        declared = declarations.load()
        state, effective = load_from(options, declared)
    except InvalidConfig as error:
        sys.stderr.write(f"outbid config: {error.message}\n")
        return 2
    found = rows(effective, declared)
    show = as_json if options.json else as_text
    sys.stdout.write(show(found, state, effective) + "\n")
    for warning in effective.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main_config(sys.argv[1:]))
