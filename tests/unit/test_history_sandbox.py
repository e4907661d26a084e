"""A query of a person reads the history and can do nothing else; what it gives comes out as what it was."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import duckdb
import msgspec
import pytest

from outbid_contracts.codec import decode, encode
from outbid_contracts.history import MAX_ANSWER_BYTES, Told
from outbid_node.history import sandbox
from outbid_node.history.rows import Events
from outbid_node.history.sandbox import Query
from outbid_node.history.store import Store
from tests.history_examples import insert, row

PATIENT_S = 60.0


class Sandbox:
    """A history of some events, and what the process that keeps it does with a query."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        self.connection = self.store.open()
        insert(self.connection, *(row(Events, at_ms=n, kind=f"k{n % 3}", text="x") for n in range(100)))

    def ask(
        self,
        sql: str,
        *,
        limit: int = 1000,
        timeout_s: float = PATIENT_S,
        format: Literal["rows", "parquet", "peer"] = "rows",
    ) -> Told:
        query = encode(Query(sql=sql, limit=limit, timeout_s=timeout_s, format=format))
        with self.store.reading() as connection:
            told: Told = decode(sandbox.answer(connection, "select", query, self.store.out), Told)
            return told

    def rows(self, sql: str, **options: Any) -> tuple[tuple[Any, ...], ...]:
        told = self.ask(sql, **options)
        assert told.error is None, told.error
        return told.rows

    def fails(self, sql: str, **options: Any) -> str:
        told = self.ask(sql, **options)
        assert told.error is not None, f"{sql} was answered: {told.rows[:3]}"
        return told.error.message


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    found = Sandbox(tmp_path_factory.mktemp("history"))
    yield found
    found.store.close()


def files(folder: Path) -> set[str]:
    """Without those of DuckDB itself, which keeps its spill folder as long as it is open."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {str(path) for path in found if path.parts[0] != "spill"}


# -- what is allowed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM events",
        "FROM events SELECT count(*);",
        "SELECT count(*) FROM main.events; -- and ; a remark",
        "/* first */ WITH e AS (FROM events) SELECT count(*) FROM e",
        "WITH events AS (SELECT 1) SELECT 100 FROM events",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 100) SELECT max(n) FROM t",
        "VALUES (100)",
        "(SELECT 100)",
        "SELECT count(*) FROM range(100)",
        "SELECT list_sum([u * 50 FOR u IN l]) FROM (SELECT [1, 1] AS l)",
        "SELECT len('é;') + 98 AS \"ö;\" ; ",
        "SELECT 66 + sum(k0)::INT FROM events PIVOT (count(*) FOR kind IN ('k0'))",
    ],
)
def test_one_select_of_any_shape_is_answered(box: Sandbox, sql: str) -> None:
    assert box.rows(sql) == ((100,),)


def test_tables_can_be_described_and_plans_explained(box: Sandbox) -> None:
    assert ("events",) in box.rows("SHOW TABLES")
    assert [described[0] for described in box.rows("DESCRIBE events")] == ["at_ms", "kind", "node", "text"]
    assert box.rows("SUMMARIZE events")[0][0] == "at_ms"
    for explain in ("EXPLAIN", "EXPLAIN ANALYZE", "EXPLAIN (FORMAT json)"):
        (plan,) = box.rows(f"{explain} SELECT * FROM events")
        assert len(plan[1]) > 50


REFUSED = [
    "INSERT INTO events VALUES (1, '', '', '')",
    "WITH gone AS (DELETE FROM events RETURNING *) SELECT * FROM gone",
    "DELETE FROM events",
    "UPDATE events SET kind = ''",
    "DROP TABLE events",
    "CREATE TEMP TABLE t AS SELECT 1",
    "CREATE MACRO m() AS 1",
    "COPY events TO '{out}/stolen.csv'",
    "WITH t AS (COPY events TO '{out}/stolen.csv') SELECT 1",
    "EXPLAIN ANALYZE COPY events TO '{out}/stolen.csv'",
    "EXPLAIN ANALYZE WITH t AS (COPY events TO '{out}/stolen.csv') SELECT 1",
    "EXPLAIN (FORMAT json) INSERT INTO events VALUES (1, '', '', '')",
    "EXPORT DATABASE '{out}'",
    "ATTACH ':memory:' AS other",
    "ATTACH '{out}/other.duckdb'",
    "DETACH history",
    "USE memory",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET memory_limit = '100GB'",
    "RESET lock_configuration",
    "PRAGMA database_list",
    "CALL duckdb_settings()",
    "CHECKPOINT",
    "BEGIN",
    "COMMIT",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "SELECT 1; SELECT 2",
    "SELECT 1; COMMIT; DELETE FROM events",
    "SELECT 1) t; DELETE FROM events; FROM (SELECT 1",
    "SELECT 1) AS a, (SELECT 2",
    "",
    " ; ",
    "-- nothing",
    "SELECT ?",
    "SELECT $x",
    "SELECT '\0'",
]


@pytest.mark.parametrize("sql", REFUSED)
def test_everything_else_is_refused_and_changes_nothing(box: Sandbox, sql: str) -> None:
    box.fails(sql.replace("{out}", str(box.store.out)))
    assert files(box.store.out) == set()
    assert box.rows("SELECT count(*), sum(at_ms) FROM events") == ((100, 4950),)


@pytest.mark.parametrize(
    "sql",
    [
        "FROM read_text('{file}')",
        "FROM read_blob('{store}')",
        "FROM '{file}'",
        "FROM read_csv('{file}')",
        "FROM glob('{out}/*')",
        "FROM sniff_csv('{file}')",
        "SELECT (SELECT content FROM read_text('{file}'))",
        "SELECT * FROM events WHERE text IN (SELECT content FROM read_text('{file}'))",
        "SELECT * FROM events SEMI JOIN read_text('{file}') ON true",
        "FROM query('SELECT * FROM read_text(''{file}'')')",
        "FROM query_table('duckdb_settings')",
        "FROM json_execute_serialized_sql(json_serialize_sql('FROM duckdb_settings()'))",
        "FROM duckdb_settings()",
        "FROM duckdb_databases",
        "FROM duckdb_secrets()",
        "FROM pg_catalog.pg_class",
        "FROM information_schema.tables",
        "FROM pragma_database_size()",
        "FROM pandas_scan(94000000000000)",
        "FROM checkpoint()",
        "SELECT current_setting('temp_directory')",
        "SELECT CURRENT_SETTING('temp_directory')",
        "SELECT getenv('HOME')",
        "SELECT nextval('s')",
        "FROM box",
        "FROM self",
    ],
)
def test_files_settings_and_the_programs_own_things_are_out_of_reach(box: Sandbox, sql: str) -> None:
    secret = box.store.out / "secret.txt"
    secret.write_text("hidden away")
    places = {"{file}": secret, "{out}": box.store.out, "{store}": box.store.file}
    for word, path in places.items():
        sql = sql.replace(word, str(path))
    try:
        assert "hidden away" not in box.fails(sql)
    finally:
        secret.unlink()


def test_refusals_say_what_is_there(box: Sandbox) -> None:
    assert "events" in box.fails("FROM evnts")
    assert "one SELECT" in box.fails("DROP TABLE events")
    assert "generate_series" in box.fails("FROM read_text('x')")


def test_errors_speak_of_the_query_and_not_of_this_machine(box: Sandbox) -> None:
    message = box.fails("SELECT at_ms,\n  knd FROM events")
    assert "LINE 2:   knd FROM events" in message
    assert '"kind"' in message, "DuckDB's hint"
    assert "LINE 1: SELCT 1" in box.fails("SELCT 1")
    for sql in (
        "SELECT 'x'::INT",
        "SELECT * FROM events ORDER BY error('no')",
        "SELECT at_ms FROM events GROUP BY kind",
    ):
        assert str(box.store.out.parent) not in box.fails(sql)


@pytest.mark.parametrize("depth", [500, 5_000])
def test_a_query_nested_beyond_reason_gets_an_error_and_the_next_one_an_answer(box: Sandbox, depth: int) -> None:
    for sql in (
        f"SELECT {'(' * depth}1{')' * depth}",
        f"SELECT {'not ' * depth}true",
        f"SELECT {'+'.join(['1'] * depth)}",
        "FROM (" * depth + "SELECT 1" + ")" * depth,
        "EXPLAIN " * depth + "SELECT 1",
        "WITH a AS (" * depth + "SELECT 1" + ") FROM a" * depth,
    ):
        box.ask(sql)
        assert box.rows("SELECT 1") == ((1,),)


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM range(1_000_000_000_000) a, range(1_000_000_000_000) b",
        "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT max(n) FROM t",
        "SELECT a.range FROM range(100_000) a, range(100_000) b WHERE a.range + b.range < 0",
    ],
)
def test_a_query_ends_when_its_time_is_over(box: Sandbox, sql: str) -> None:
    began = time.monotonic()
    told = box.ask(sql, timeout_s=0.3)
    assert told.error is not None
    assert told.error.code == "query_too_long"
    assert "0.3 s" in told.error.message
    assert time.monotonic() - began < 10
    assert box.rows("SELECT 1") == ((1,),)


def test_more_rows_than_the_limit_are_cut_off_and_said_so(box: Sandbox) -> None:
    exact, short = (
        box.ask("FROM events ORDER BY at_ms DESC", limit=100),
        box.ask("FROM events ORDER BY 1 DESC", limit=99),
    )
    assert (len(exact.rows), exact.truncated) == (100, False)
    assert (len(short.rows), short.truncated) == (99, True)
    assert [found[0] for found in short.rows] == list(range(99, 0, -1)), "the first, in the query's own order"


@pytest.mark.parametrize("format", ["rows", "parquet"])
def test_an_answer_fits_the_bus(box: Sandbox, format: Literal["rows", "parquet"]) -> None:
    noise = " || ".join(f"md5('{n}-' || range)" for n in range(16))
    told = box.ask(f"SELECT range, {noise} AS noise FROM range(100_000)", format=format, limit=100_000)
    error, truncated, size = told.error, told.truncated, len(told.parquet or encode(told.rows))
    assert error is None
    assert truncated
    assert MAX_ANSWER_BYTES / 2 < size <= MAX_ANSWER_BYTES
    assert files(box.store.out) == set()


def test_a_row_that_is_too_large_alone_is_an_error(box: Sandbox) -> None:
    assert "14 MiB" in box.fails("SELECT repeat('x', 15_000_000)")


def test_nothing_is_left_behind_where_a_file_could_not_be_finished(box: Sandbox) -> None:
    endless = "SELECT a.range, uuid() FROM range(1_000_000) a, range(1_000_000) b"
    assert box.ask(endless, format="peer", timeout_s=0.3, limit=100_000_000).error is not None
    assert files(box.store.out) == set()


# -- values ------------------------------------------------------------------------------------------------------------

VALUES: list[tuple[str, Any]] = [
    ("true", True),
    ("NULL", None),
    ("42::TINYINT", 42),
    ("9223372036854775807", 2**63 - 1),
    ("18446744073709551615::UBIGINT", 2**64 - 1),
    ("7::HUGEINT", 7),
    ("170141183460469231731687303715884105727", "170141183460469231731687303715884105727"),
    ("1.5::FLOAT", 1.5),
    ("'nan'::DOUBLE", "NaN"),
    ("'-inf'::DOUBLE", "-Infinity"),
    ("1.10::DECIMAL(10, 2)", 1.1),
    ("12345678901234567890.12::DECIMAL(38, 2)", "12345678901234567890.12"),
    ("'text'", "text"),
    ("'\\xDE\\xAD'::BLOB", "\\xDE\\xAD"),
    ("DATE '2026-01-02'", "2026-01-02"),
    ("'infinity'::DATE", "infinity"),
    ("'44-03-15 (BC)'::DATE", "0044-03-15 (BC)"),
    ("TIMESTAMP '2026-01-02 03:04:05.6'", "2026-01-02 03:04:05.6"),
    ("'2026-01-02 03:04:05.123456789'::TIMESTAMP_NS", "2026-01-02 03:04:05.123456789"),
    ("INTERVAL '1 month 2 days'", "1 month 2 days"),
    ("TIME '12:00:01.5'", "12:00:01.5"),
    ("TIMETZ '12:00:00+02'", "12:00:00+02"),
    ("UUID '00000000-0000-0000-0000-000000000001'", "00000000-0000-0000-0000-000000000001"),
    ("'101'::BIT", "101"),
    ("'a'::ENUM('a', 'b')", "a"),
    ("[1, 2, NULL]", [1, 2, None]),
    ("[1, 2]::INT[2]", [1, 2]),
    ("{'a': 1, 'b': ['nan'::DOUBLE], 'c': DATE '2026-01-02'}", {"a": 1, "b": ["NaN"], "c": "2026-01-02"}),
    ("MAP {'a': 1.5::DOUBLE}", {"a": 1.5}),
    ("MAP {1: 'x'}", {"1": "x"}),
    ("[170141183460469231731687303715884105727]", ["170141183460469231731687303715884105727"]),
    ("'{\"a\": [1]}'::JSON", {"a": [1]}),
    ("union_value(k := 1)", {"k": 1}),
]


@pytest.mark.parametrize(("sql", "value"), VALUES)
def test_a_value_of_any_type_comes_out_sensibly(box: Sandbox, sql: str, value: Any) -> None:
    ((found,),) = box.rows(f"SELECT {sql}")
    assert found == value
    assert type(found) is type(value)
    assert msgspec.json.decode(msgspec.json.encode(found)) == value
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found)) == value


def test_a_moment_with_a_zone_needs_no_further_package(box: Sandbox) -> None:
    ((found,),) = box.rows("SELECT epoch_ms(x::TIMESTAMPTZ) FROM (SELECT TIMESTAMPTZ '2026-01-02 03:04:05+02' AS x)")
    ((text,),) = box.rows("SELECT TIMESTAMPTZ '2026-01-02 03:04:05+02'")
    assert found == 1767315845000
    assert isinstance(text, str)
    assert text.startswith("2026-01-0")


def test_parquet_holds_every_value_exactly(box: Sandbox, tmp_path: Path) -> None:
    """But for what it has no type for: those are text for a peer, which makes of it what it was."""
    file = tmp_path / "answer.parquet"
    for sql, _ in VALUES:
        if "union_value" in sql or sql == "[170141183460469231731687303715884105727]":
            continue
        told = box.ask(f"SELECT {sql} AS x", format="peer")
        assert told.error is None, told.error
        file.write_bytes(told.parquet)
        type = told.columns[0].type
        cast = "x" if type == '"NULL"' else f"x::{type}"
        with duckdb.connect() as connection:
            same = connection.execute(f"SELECT {cast} IS NOT DISTINCT FROM ({sql}) FROM '{file}'").fetchone()
        assert same == (True,), sql


def test_a_sum_of_integers_is_an_exact_number_in_parquet_for_people(box: Sandbox, tmp_path: Path) -> None:
    """DuckDB itself would write a float: its sums are of 128 bits."""
    file = tmp_path / "answer.parquet"
    file.write_bytes(
        box.ask("SELECT sum(9007199254740993) AS x, [sum(at_ms)] AS y FROM events", format="parquet").parquet
    )
    with duckdb.connect() as connection:
        assert connection.execute(f"SELECT typeof(x), x::VARCHAR, y[1]::VARCHAR FROM '{file}'").fetchone() == (
            "DECIMAL(38,0)",
            str(9007199254740993 * 100),
            "4950",
        )


def test_columns_of_one_name_are_told_apart(box: Sandbox) -> None:
    told = box.ask('SELECT 1 AS a, 2 AS a, 3 AS "quoted "" name", 4 AS "a;b"')
    names = [column.name for column in told.columns]
    assert len(set(names)) == 4
    assert names[2:] == ['quoted " name', "a;b"]
    assert told.rows == ((1, 2, 3, 4),)


def test_an_empty_answer_still_has_its_columns(box: Sandbox) -> None:
    for format in ("rows", "peer"):
        told = box.ask("SELECT at_ms, text FROM events WHERE false", format=format)
        assert [(column.name, column.type) for column in told.columns] == [("at_ms", "BIGINT"), ("text", "VARCHAR")]
        assert told.rows == ()


def test_floats_keep_their_digits(box: Sandbox) -> None:
    ((found,),) = box.rows(f"SELECT {math.pi!r}::DOUBLE")
    assert found == math.pi


def test_the_connection_of_a_query_is_read_only_even_if_the_check_were_wrong(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "checked", lambda connection, sql, tables: (sql, True))
    assert "read-only" in box.fails("DELETE FROM events")
    assert "read-only" in box.fails("CREATE TABLE t AS SELECT 1")
    assert "disabled by configuration" in box.fails("SELECT * FROM read_text('/etc/hostname')")
    assert "locked" in box.fails("SET threads = 64")
    assert box.rows("SELECT 100") == ((100,),)
