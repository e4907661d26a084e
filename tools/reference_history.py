"""Write docs/reference/history.md from the rows of the history and what their columns mean."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from outbid_contracts.history import TableView
from outbid_node.history.meaning import table_list

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "history.md"

HEAD = """\
# Tables of the history

<!-- Written by `make reference` from node/outbid_node/history/rows.py and meaning.py; edit those instead. -->

What each node keeps about itself, and `outbid sql` reads; how to ask, with examples, is in [history.md](../history.md).
`_ms` is Unix time in milliseconds, `_s` seconds, `_j` joules, `_w` watts, `_c` degrees Celsius, `_usd` dollars, `_mib`
MiB. NULL is not known, or not there. `outbid sql --tables` prints the same.
"""


def pages() -> dict[Path, str]:
    return {PAGE: "\n".join([HEAD, *(line for table in table_list().tables for line in _section(table))])}


def _section(table: TableView) -> Iterator[str]:
    yield f"## {table.name}"
    yield ""
    yield table.meaning
    yield ""
    yield "| column | type | meaning |"
    yield "|---|---|---|"
    for name, type, meaning in table.columns:
        yield f"| `{name}` | {type} | {meaning} |"
    yield ""
