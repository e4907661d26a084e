"""Write the pages of docs/reference that are made from declarations. A test holds them to what this would write."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import msgspec

import reference_docs
import reference_history
import reference_roles
from outbid_contracts.capability import ENTRY_POINT_GROUP, Capability
from outbid_contracts.schema import all_schemas
from outbid_node import declarations
from outbid_node.config import ALIASES, SECTIONS, sections, variable
from outbid_node.config_cli import FLAGS
from outbid_node.config_values import allowed, describe, note

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"

HEAD = """\
# Configuration

<!-- Written by `make reference` from the declarations; edit those instead. -->

Later wins: the defaults below, a TOML file, environment variables, flags. `outbid config` prints what is in force and
where each value came from; `outbid config --json` the same for programs.

The file is the one named by `--config` or `OUTBID_CONFIG`; else `config.toml` in the state folder (`--state` or
`OUTBID_STATE`); else `config.toml` in the platform's configuration folder (Linux: `~/.config/outbid/`). A key that
does not exist is refused with the nearest one that does.

Every key has the environment variable `OUTBID_<SECTION>_<KEY>` and the flag `--set section.key=value`. There, lists
are separated by commas, tables are JSON, and true and false may be yes, no, on, off, 1, 0. An empty variable counts as
not set.
"""


def pages() -> dict[Path, str]:
    """Each generated file with its text."""
    schemas = json.dumps(all_schemas(), indent=2, ensure_ascii=False) + "\n"
    return (
        {
            REFERENCE / "configuration.md": configuration(_ours()),
            REFERENCE / "messages.schema.json": schemas,
        }
        | reference_docs.pages()
        | reference_history.pages()
        | reference_roles.pages()
    )


def configuration(declared: Mapping[str, Capability]) -> str:
    return "\n".join([HEAD, *(_section(name, kind, declared) for name, kind in sections(declared).items())])


def _ours() -> dict[str, Capability]:
    """Only what this distribution declares: what else is installed here is nobody's reference."""
    mine = [e for e in entry_points(group=ENTRY_POINT_GROUP) if e.dist is not None and e.dist.name == "outbid"]
    return declarations.load(mine)


def _section(name: str, kind: type[msgspec.Struct], declared: Mapping[str, Capability]) -> str:
    users = [capability.name for capability in declared.values() if capability.section == name]
    of = f"Settings of {', '.join(f'`{user}`' for user in users)}. " if name not in SECTIONS else ""
    return "\n".join([f"## [{name}]", "", of + _first_paragraph(kind), "", *_table(name, kind), ""])


def _first_paragraph(kind: type) -> str:
    return " ".join((kind.__doc__ or "").partition("\n\n")[0].split())


def _table(section: str, kind: type[msgspec.Struct]) -> Iterator[str]:
    yield "| key | default | allowed | meaning | also |"
    yield "|---|---|---|---|---|"
    for field in msgspec.structs.fields(kind):
        key = f"{section}.{field.name}"
        also = [flag.flag for flag in FLAGS if flag.key == key] + [name for name, of in ALIASES.items() if of == key]
        meaning = describe(field.type)
        others = ", ".join(f"`{name}`" for name in [*also, variable(key)])
        yield f"| `{field.name}` | {_default(field)} | {_cell(allowed(field.type))} | {_cell(meaning)} | {others} |"


def _default(field: msgspec.structs.FieldInfo) -> str:
    if said := note(field.type, "default"):
        return _cell(str(said))
    made: Any = field.default if field.default is not msgspec.NODEFAULT else None
    if field.default_factory is not msgspec.NODEFAULT:
        made = field.default_factory()
    return "none" if made is None else f"`{_cell(json.dumps(msgspec.to_builtins(made), ensure_ascii=False))}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8", newline="\n")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
