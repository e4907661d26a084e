"""The history's file on a real disk: versions, damage, and what lies around it."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from outbid_node.history.damage import Unusable, log_of
from outbid_node.history.frames import Batch
from outbid_node.history.migrations import MIGRATIONS, migrate
from outbid_node.history.rows import TABLES, Events, Runs
from outbid_node.history.schema import as_json, columns, insertion, table_of
from outbid_node.history.store import Store
from outbid_node.history.writer import Writer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def event(number: int, text: str = "") -> Events:
    return Events(at_ms=number, kind="test", node="n", text=text)


def kept(folder: Path) -> list[int]:
    """The events in the file, as another program reads it."""
    with duckdb.connect(folder / "history.duckdb") as connection:
        return [row[0] for row in connection.execute("SELECT at_ms FROM events ORDER BY at_ms").fetchall()]


def write(store: Store, *events: Events) -> None:
    store.open().execute(insertion("events"), [as_json(events)[0]])


def aside(folder: Path, word: str) -> list[Path]:
    return [path for path in folder.glob(f"history.duckdb.{word}-*") if path.suffix != ".wal"]


# -- the schema --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TABLES, ids=table_of)
def test_the_newest_version_has_a_table_for_each_kind_of_row(store: Store, kind: type) -> None:
    found = store.open().execute(f"DESCRIBE {table_of(kind)}").fetchall()
    types = {name: "BIGINT" if sql_type == "INTEGER" else sql_type for name, sql_type, *_ in found}
    assert types == columns(kind)


def test_a_file_of_an_earlier_version_is_brought_to_the_newest_with_its_rows(tmp_path: Path) -> None:
    first = Store(tmp_path, MIGRATIONS[:1])
    write(first, event(1))
    first.close()
    later = Store(tmp_path, (*MIGRATIONS, "ALTER TABLE events ADD COLUMN more VARCHAR DEFAULT 'new'"))
    rows = later.open().execute("SELECT at_ms, more FROM events").fetchall()
    later.close()
    assert rows == [(1, "new")]
    assert not later.trouble


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    with duckdb.connect(tmp_path / "file") as connection:
        migrate(connection)
        with pytest.raises(duckdb.Error):
            migrate(connection, (*MIGRATIONS, "CREATE TABLE extra (a INTEGER); SELECT nonsense"))
        assert connection.execute("SELECT max(version) FROM schema_version").fetchone() == (len(MIGRATIONS),)
        assert connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'extra'").fetchone() is None


def test_a_file_of_a_later_version_is_put_aside_as_it_is(tmp_path: Path, store: Store) -> None:
    later = Store(tmp_path, (*MIGRATIONS, "CREATE TABLE more (a INTEGER)"))
    write(later, event(1))
    later.close()
    before = (tmp_path / "history.duckdb").read_bytes()
    write(store, event(2))
    [put_aside] = aside(tmp_path, "newer")
    assert put_aside.read_bytes() == before
    assert "later version" in store.trouble
    store.close()
    assert kept(tmp_path) == [2]


def test_what_does_not_fit_a_column_is_null_and_the_rest_is_kept(store: Store) -> None:
    connection = store.open()
    odd = '[{"at_ms": "x", "kind": 7, "node": null, "text": "a"}, {"at_ms": 2, "unknown": 1}]'
    connection.execute(insertion("events"), [odd])
    assert connection.execute("SELECT * FROM events").fetchall() == [(None, "7", None, "a"), (2, None, None, None)]


def test_maps_of_one_batch_may_have_different_keys(store: Store) -> None:
    connection = store.open()
    works = [{}, {"a": 1.0}, {"b": 0.5, "c": float("nan")}]
    connection.execute(insertion("runs"), [as_json([run(work) for work in works])[0]])
    found = [row[0] for row in connection.execute("SELECT work FROM runs").fetchall()]
    assert found == [{}, {"a": 1.0}, {"b": 0.5, "c": None}]


def run(work: dict[str, float]) -> Runs:
    return Runs(
        job="j",
        attempt=1,
        owner="o",
        submitter="",
        capability="c",
        model=None,
        device="",
        outcome="done",
        error_code="",
        started_ms=1,
        ended_ms=2,
        warm=True,
        beside=0,
        work=work,
        counts={},
        seconds={},
        promised_s=None,
        promised_p90_s=None,
        took_s=0.1,
        energy_j=None,
        cost_usd=None,
        power_source="",
    )


def test_a_row_whose_text_is_no_unicode_is_left_out_alone() -> None:
    text, rows = as_json([event(1), event(2, "\ud800"), event(3)])
    assert rows == 2
    assert '"at_ms":2' not in text


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_file_is_put_aside_and_a_new_one_begun(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    first = Store(tmp_path)
    write(first, *(event(number, "x" * 50) for number in range(20_000)))
    first.close()
    file = tmp_path / "history.duckdb"
    whole = file.read_bytes()
    file.write_bytes(damaged(whole, seed, chance))
    writer = Writer(Store(tmp_path), on_written=lambda seq, dropped: None, on_state=lambda usable: None)
    writer.start()
    writer.add(Batch(1, {"events": as_json([event(-1)])[0]}, 1))
    writer.close()
    if not aside(tmp_path, "broken"):  # the damage lies where nothing of this reads
        assert -1 in kept(tmp_path)
        return
    assert kept(tmp_path) == [-1]
    assert "kept as" in writer.store.trouble


def damaged(data: bytes, seed: int, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    match seed % 4:
        case 0:
            return data[:at]
        case 1:
            return chance.randbytes(len(data))
        case 2:
            return data[:at] + chance.randbytes(4096) + data[at + 4096 :]
        case _:
            return chance.randbytes(4096) + data[4096:]


def test_rows_that_turn_out_to_be_damaged_later_cost_the_file_not_the_writer(tmp_path: Path) -> None:
    """Their block is read by a query only, long after the file was opened."""
    first = Store(tmp_path)
    write(first, *(event(number, random.Random(number).randbytes(40).hex()) for number in range(50_000)))
    first.close()
    file = tmp_path / "history.duckdb"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    writer = Writer(Store(tmp_path), on_written=lambda seq, dropped: None, on_state=lambda usable: None)
    writer.start()
    with pytest.raises(duckdb.Error) as met, writer.store.reading() as connection:
        connection.execute("SELECT max(text), sum(at_ms) FROM events").fetchall()
    writer.suspect(met.value)
    writer.add(Batch(1, {"events": as_json([event(-1)])[0]}, 1))
    writer.close()
    assert kept(tmp_path) == [-1]
    assert len(aside(tmp_path, "broken")) == 1


def test_a_folder_in_the_place_of_the_file_is_put_aside(tmp_path: Path, store: Store) -> None:
    (tmp_path / "history.duckdb" / "in it").mkdir(parents=True)
    write(store, event(1))
    assert [path.is_dir() for path in aside(tmp_path, "broken")] == [True]


def test_the_log_of_a_damaged_file_goes_with_it(tmp_path: Path, store: Store) -> None:
    (tmp_path / "history.duckdb").write_bytes(b"nothing of the kind")
    log_of(tmp_path / "history.duckdb").write_bytes(b"its log")
    store.open()
    [put_aside] = aside(tmp_path, "broken")
    assert log_of(put_aside).read_bytes() == b"its log"


def test_only_the_last_files_put_aside_are_kept(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / "history.duckdb").write_bytes(b"no database %d" % number)
        store = Store(tmp_path)
        store.open()
        store.close()
    contents = [path.read_bytes() for path in sorted(aside(tmp_path, "broken"))]
    assert contents == [b"no database 2", b"no database 3"]


# -- what lies around it -----------------------------------------------------------------------------------------------


def test_a_file_that_another_process_has_open_is_left_alone(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbid_node.history.store.LOCKED_S", 0.2)
    hold = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path / "history.duckdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(Unusable, match="lock"):
            store.open()
        other.communicate()
    assert not aside(tmp_path, "broken")
    write(store, event(1))


def mounted(folder: Path, options: str) -> None:
    """Skips where that is not allowed."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.decode()}")


@pytest.mark.skipif(sys.platform != "linux", reason="mounts")
def test_a_folder_that_cannot_be_written_is_no_history_and_no_end(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    mounted(folder, "size=1m,ro")
    try:
        with pytest.raises(Unusable, match=r"[Rr]ead-only"):
            Store(folder).open()
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts")
def test_a_full_disk_loses_rows_and_not_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    mounted(folder, "size=4m")
    try:
        dropped: dict[int, int] = {}
        writer = Writer(Store(folder), on_written=dropped.__setitem__, on_state=lambda usable: None)
        writer.start()
        writer.add(Batch(1, {"events": as_json([event(1)])[0]}, 1))
        text = [random.Random(number).randbytes(500).hex() for number in range(1000)]
        for seq in range(2, 12):
            rows = as_json([event(seq * 1000 + number, text[number]) for number in range(1000)])[0]
            writer.add(Batch(seq, {"events": rows}, 1000))
        writer.close()
        assert dropped[1] == 0
        assert dropped[11] == 1000
        assert not aside(folder, "broken")
        assert 1 in kept(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
