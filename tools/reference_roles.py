"""Write docs/reference/roles.md from the declaration that the credentials are made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from outbid_contracts.roles import OWN_INBOX, ROLES, Role, Rules

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "roles.md"

HEAD = f"""\
# Roles

<!-- Written by `make reference` from contracts/outbid_contracts/roles.py; edit that instead. -->

Every program that connects to a mesh has credentials of one of these roles. The servers of each node enforce what the
role may do; a node does not have to check again. What is denied wins over what is allowed. How this protects a mesh,
and what it does not protect, is in [security.md](../security.md); the subjects are in [subjects.md](subjects.md).

`{OWN_INBOX}` stands for the inbox with the user's own public key in its name: replies are private. A
client must be told that prefix, e.g. `nats --inbox-prefix _INBOX_UABC…`; the SDK, and the context that a node writes
for the `nats` command (`nats --context outbid …`), know it.
"""


def pages() -> dict[Path, str]:
    return {PAGE: "\n".join([HEAD, *(line for role in ROLES.values() for line in _section(role))])}


def _section(role: Role) -> Iterator[str]:
    yield f"## {role.name}"
    yield ""
    yield f"{role.summary[0].upper()}{role.summary[1:]}."
    yield ""
    yield "| | allowed | denied |"
    yield "|---|---|---|"
    yield f"| publish | {_cells(role.publish)} |"
    yield f"| subscribe | {_cells(role.subscribe)} |"
    yield ""


def _cells(rules: Rules) -> str:
    return f"{_patterns(rules.allow) or 'everything'} | {_patterns(rules.deny) or 'nothing more'}"


def _patterns(patterns: tuple[str, ...]) -> str:
    return ", ".join(f"`{pattern}`" for pattern in patterns)
