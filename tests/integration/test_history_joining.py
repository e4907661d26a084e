"""What the nodes answered to one query becomes one table, whatever one of them sent."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from outbid_contracts.errors import OutbidError
from outbid_contracts.history import Column, Told
from outbid_node.history.joining import Joiner, Order, Part, joined
from outbid_node.history.sandbox import Query, select
from outbid_node.history.store import Store

FUZZED = 50
ALL = "FROM answers"


class Peer:
    """Answers as a node would."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        self.store.open()

    def answer(self, sql: str) -> Told:
        with self.store.reading() as connection:
            query = Query(sql=sql, limit=1000, timeout_s=60, format="peer")
            return select(connection, query, ["events"], self.store.out)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    found = Peer(tmp_path_factory.mktemp("peer"))
    yield found
    found.store.close()


def over(sql: str = ALL, limit: int = 1000) -> Query:
    return Query(sql=sql, limit=limit, timeout_s=60)


async def join(folder: Path, answers: dict[str, Told], query: Query) -> tuple[Told, dict[str, str]]:
    """`answers` by the node's name."""
    async with Joiner(folder) as joiner:
        for name, told in answers.items():
            await joiner.keep(name, name, told.columns, told.parquet)
        return await joiner.join(query, 1000)


async def test_answers_are_joined_by_the_names_of_their_columns_with_the_nodes_in_front(
    peer: Peer, tmp_path: Path
) -> None:
    answers = {
        "anna": peer.answer("SELECT 1 AS a, 'x' AS b"),
        "o'b\"rien": peer.answer("SELECT 'y' AS b, 2 AS a, 2.5 AS newer"),
    }
    told, refused = await join(tmp_path, answers, over())
    assert [column.name for column in told.columns] == ["node", "a", "b", "newer"]
    assert told.rows == (("anna", 1, "x", None), ("o'b\"rien", 2, "y", 2.5))
    assert refused == {}
    assert list(tmp_path.iterdir()) == [], "nothing is left of it"


async def test_a_second_select_sums_up_over_all_nodes(peer: Peer, tmp_path: Path) -> None:
    answers = {name: peer.answer(f"SELECT range AS n FROM range({size})") for name, size in (("a", 3), ("b", 5))}
    told, _ = await join(
        tmp_path, answers, over("SELECT node, count(*), sum(n) FROM answers GROUP BY ALL ORDER BY ALL")
    )
    assert told.rows == (("a", 3, 3), ("b", 5, 10))
    told, _ = await join(tmp_path, answers, over("SELECT * FROM read_parquet('*')"))
    assert told.error is not None
    assert "read_parquet" in told.error.message
    told, _ = await join(tmp_path, answers, over("SELECT nothing FROM answers"))
    assert told.error is not None
    assert told.error.code == "bad_query"


async def test_values_that_parquet_does_not_hold_are_what_they_were(peer: Peer, tmp_path: Path) -> None:
    sql = "SELECT 170141183460469231731687303715884105727 AS huge, TIMETZ '12:00:00+02' AS zone, '101'::BIT AS bits"
    told, _ = await join(tmp_path, {"a": peer.answer(sql)}, over())
    assert [column.type for column in told.columns] == ["VARCHAR", "HUGEINT", "TIME WITH TIME ZONE", "BIT"]
    assert told.rows == (("a", "170141183460469231731687303715884105727", "12:00:00+02", "101"),)


async def test_a_column_called_node_gives_way_to_the_nodes_name(peer: Peer, tmp_path: Path) -> None:
    told, _ = await join(tmp_path, {"a": peer.answer("SELECT 'id' AS Node, 1 AS node_1")}, over())
    assert dict(zip([c.name for c in told.columns], told.rows[0], strict=True)) == {
        "node": "a",
        "node_2": "id",
        "node_1": 1,
    }


async def test_types_that_differ_between_versions_meet(peer: Peer, tmp_path: Path) -> None:
    answers = {"a": peer.answer("SELECT 1::INT AS n"), "b": peer.answer("SELECT 2.5::DOUBLE AS n")}
    told, refused = await join(tmp_path, answers, over())
    assert told.rows == (("a", 1.0), ("b", 2.5))
    answers["c"] = peer.answer("SELECT {'k': 1} AS n")
    told, refused = await join(tmp_path, answers, over("SELECT count(*) FROM answers"))
    assert told.rows == (((3 - len(refused)),),)


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "column"])
async def test_a_part_that_cannot_be_read_costs_that_part_only(peer: Peer, tmp_path: Path, damage: str) -> None:
    sound = peer.answer("SELECT range AS n FROM range(100)")
    parquet = {"cut": sound.parquet[:-50], "noise": random.Random(7).randbytes(500), "empty": b""}.get(damage)
    columns = sound.columns if damage != "column" else (Column(name='no"such', type="BIGINT"),)
    broken = Told(columns=columns, parquet=sound.parquet if parquet is None else parquet)
    told, refused = await join(tmp_path, {"a": sound, "b": broken, "c": sound}, over("SELECT count(*) FROM answers"))
    assert told.rows == ((200,),)
    assert list(refused) == ["b"]
    assert str(tmp_path) not in refused["b"]


async def test_a_type_that_a_peer_claims_is_not_run_as_sql(peer: Peer, tmp_path: Path) -> None:
    honest = peer.answer("SELECT 1 AS n")
    claimed = Column(name="n", type="INT) AS n FROM read_text('/etc/hostname') --")
    told, refused = await join(tmp_path, {"a": Told(columns=(claimed,), parquet=honest.parquet)}, over())
    assert told.rows == (("a", 1),)
    assert refused == {}


async def test_more_rows_than_were_asked_for_are_left_out(peer: Peer, tmp_path: Path) -> None:
    async with Joiner(tmp_path) as joiner:
        many = peer.answer("SELECT range AS n FROM range(900)")
        await joiner.keep("a", "a", many.columns, many.parquet)
        told, _ = await joiner.join(over("SELECT count(*) FROM answers"), 10)
    assert told.rows == ((10,),)


async def test_a_part_that_takes_the_process_with_it_is_found_and_left_out(peer: Peer, tmp_path: Path) -> None:
    """A program in the place of the real one, which dies as native code does when it meets a certain part."""
    deadly = tmp_path / "deadly.py"
    deadly.write_text(
        "import os, pathlib, sys\n"
        "from outbid_contracts.codec import decode, encode\n"
        "from outbid_node.history.joining import Order, joined\n"
        "order = decode(sys.stdin.buffer.read(), Order)\n"
        "if any(b'deadly' in pathlib.Path(part.file).read_bytes() for part in order.parts):\n"
        "    os.abort()\n"
        "sys.stdout.buffer.write(encode(joined(order)))\n"
    )
    sound = peer.answer("SELECT 1 AS n")
    async with Joiner(tmp_path / "join") as joiner:
        joiner.program = (sys.executable, str(deadly))
        for name in "abcd":
            await joiner.keep(name, name, sound.columns, b"deadly" if name in "bd" else sound.parquet)
        told, refused = await joiner.join(over("SELECT node FROM answers"), 10)
        assert told.rows == (("a",), ("c",))
        assert refused == {"b": "its answer is damaged", "d": "its answer is damaged"}
        joiner.program = (sys.executable, "-c", "import os; os.abort()")
        with pytest.raises(OutbidError, match="could not be joined"):
            await joiner.join(over(), 10)


def test_no_damage_to_parquet_ends_the_process_or_its_answer(peer: Peer, tmp_path: Path) -> None:
    """What this process survives, the real one does; it has a process of its own for what this did not try."""
    sound = peer.answer("SELECT range AS n, 'text' || range AS t, MAP {'a': range::DOUBLE} AS m FROM range(500)")
    chance = random.Random(1)
    file = tmp_path / "part.parquet"
    good = tmp_path / "good.parquet"
    good.write_bytes(sound.parquet)
    damaged = 0
    for _ in range(FUZZED):
        data = bytearray(sound.parquet)
        for _ in range(chance.choice((1, 3, 30))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        file.write_bytes(data)
        parts = tuple(Part(name=one.stem, columns=sound.columns, file=str(one)) for one in (good, file))
        found = joined(Order(folder=str(tmp_path), parts=parts, query=over("SELECT count(*) FROM answers"), rows=1000))
        assert found.told.error is None, found.told.error
        assert found.told.rows[0][0] >= 500
        damaged += bool(found.refused)
    assert damaged > FUZZED / 10


async def test_a_part_that_unpacks_to_gigabytes_is_an_error_for_that_node(peer: Peer, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.parquet"
    with duckdb.connect() as connection:
        sql = "SELECT repeat('x', 100_000_000) || range AS n FROM range(12)"
        connection.execute(f"COPY ({sql}) TO '{bomb}' (COMPRESSION zstd, ROW_GROUP_SIZE 2048)")
    assert bomb.stat().st_size < 14 * 2**20
    sound = peer.answer("SELECT 'small' AS n")
    answers = {"a": sound, "bomb": Told(columns=sound.columns, parquet=bomb.read_bytes())}
    told, refused = await join(tmp_path, answers, over("SELECT node, n FROM answers"))
    assert told.rows == (("a", "small"),)
    assert list(refused) == ["bomb"]
