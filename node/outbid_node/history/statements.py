"""Which SQL a person may run: exactly one SELECT over the tables of the history.

DuckDB's own word for the kind of a statement is not enough: `WITH x AS (COPY jobs TO 'file') SELECT 1` counts as SELECT
and EXPLAIN ANALYZE COPY as EXPLAIN, and both write the file, also in a read-only transaction (2.0). So the syntax tree
is read as well, and only what is known to be harmless passes: nodes that read, the given tables, a few functions that
make tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from outbid_contracts.errors import InvalidRequest

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

ALLOWED = "one SELECT is allowed here (also WITH, FROM, VALUES, DESCRIBE, SUMMARIZE, SHOW TABLES, EXPLAIN)"

_EXPLAIN = re.compile(r"\s*explain\s+(?:analyze\s+)?(?:\([\w\s,]*\)\s*)?", re.IGNORECASE)
_READING = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_TABLE_FUNCTIONS = {"range", "generate_series", "unnest", "json_each", "json_tree"}
_FUNCTIONS_REFUSED = {
    "currval",
    "current_setting",
    "getenv",
    "getvariable",
    "nextval",
    "setseed",
    "setval",
    "sleep_ms",
    "write_log",
}


def checked(connection: DuckDBPyConnection, sql: str, tables: Collection[str]) -> tuple[str, bool]:
    """The statement without what ends it, and whether it is an EXPLAIN. Raises InvalidRequest saying what is allowed,
    duckdb.ParserException.
    """
    if "\0" in sql:
        raise InvalidRequest("the query holds a NUL character")
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise InvalidRequest(f"{ALLOWED}, not {len(statements)} statements" if statements else "the query is empty")
    kind = str(statements[0].type.name)
    if kind not in ("SELECT", "EXPLAIN"):
        raise InvalidRequest(f"{ALLOWED}, not {kind}: the history is read-only")
    if statements[0].named_parameters:
        raise InvalidRequest("a query cannot have parameters (?, $1); write the values into it")
    text = _without_end(sql)
    _check_tree(_tree(connection, _EXPLAIN.sub("", text, count=1) if kind == "EXPLAIN" else text), tables)
    return text, kind == "EXPLAIN"


def _without_end(sql: str) -> str:
    """Up to the semicolon, which a subquery must not have."""
    import duckdb

    data = sql.encode()
    for offset, kind in duckdb.tokenize(sql):
        if kind == duckdb.token_type.operator and data[offset : offset + 1] == b";":
            return data[:offset].decode()
    return sql


def _tree(connection: DuckDBPyConnection, sql: str) -> Any:
    """Raises InvalidRequest where there is none, which is the case for all but SELECT."""
    row = connection.execute("SELECT json_serialize_sql($1::VARCHAR)", [sql]).fetchone()
    assert row is not None
    try:
        tree = json.loads(row[0])
    except RecursionError as error:
        raise InvalidRequest("the query is nested too deeply") from error
    if tree["error"]:
        what = "of a SELECT" if tree.get("error_type") == "not implemented" else f"({tree.get('error_message')})"
        raise InvalidRequest(f"{ALLOWED}; an EXPLAIN must be {what}")
    return tree["statements"]


def _check_tree(tree: Any, tables: Collection[str]) -> None:
    names = {name.lower() for name in tables}
    nodes = list(_nodes(tree))
    known = names | {str(entry["key"]).lower() for node in nodes for entry in _of_ctes(node)}
    for node in nodes:
        kind = str(node.get("type", ""))
        if kind.endswith("_NODE") and kind not in _READING:
            raise InvalidRequest(f"{ALLOWED}, not {kind.removesuffix('_NODE').removesuffix('_QUERY')} within one")
        if kind == "BASE_TABLE":
            _check_table(node, known, sorted(names))
        if kind == "TABLE_FUNCTION":
            _check_table_function(node)
        if node.get("class") == "FUNCTION" and str(node.get("function_name")).lower() in _FUNCTIONS_REFUSED:
            raise InvalidRequest(f"the function {node['function_name']} is not allowed here")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every map in it, without recursion."""
    todo = [tree]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            yield item
            todo += item.values()
        elif isinstance(item, list):
            todo += item


def _of_ctes(node: dict[str, Any]) -> list[dict[str, Any]]:
    ctes = node.get("cte_map")
    return ctes.get("map", []) if isinstance(ctes, dict) else []


def _check_table(node: dict[str, Any], known: Collection[str], there_are: Collection[str]) -> None:
    path = (node.get("qualified_name") or {}).get("path") or [node.get("table_name")]
    above = path[:-1] or [part for part in (node.get("catalog_name"), node.get("schema_name")) if part]
    if str(path[-1]).lower() not in known or above not in ([], ["main"]):
        raise InvalidRequest(f"there is no table {'.'.join(map(str, path))}; there are {', '.join(there_are)}")


def _check_table_function(node: dict[str, Any]) -> None:
    name = str(node["function"].get("function_name")).lower()
    if name not in _TABLE_FUNCTIONS:
        raise InvalidRequest(
            f"the table function {name} is not allowed here; allowed are {', '.join(sorted(_TABLE_FUNCTIONS))}"
        )
