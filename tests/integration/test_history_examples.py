"""The queries of docs/history.md find what they say, in a history that is known."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outbid_contracts.codec import decode, encode
from outbid_contracts.history import Told
from outbid_node.history import sandbox
from outbid_node.history.joining import Joiner
from outbid_node.history.rows import Attempts, Bids, Jobs, Row, Runs, Samples, Usage
from outbid_node.history.sandbox import Query
from outbid_node.history.store import Store
from tests.history_examples import Example, examples, insert, row

NOON_MS = int(datetime.datetime(2026, 11, 3, 12).timestamp() * 1000)
NOW_MS = int(time.time() * 1000)


def run(model: str, tokens: float, seconds: float) -> Row:
    done = {"outcome": "done", "capability": "llm.chat", "counts": {"new_tokens": tokens}}
    return row(Runs, model=model, seconds={"new_tokens": seconds}, took_s=seconds, **done)


def attempt(name: str, promised_s: float, took_s: float, error: str = "") -> Row:
    kept = {"promised_s": promised_s, "promised_p90_s": 1.5 * promised_s, "took_s": took_s}
    return row(Attempts, name=name, error_code=error, error=error and f"{error}!", **kept)


def usage(submitter: str, tokens: float, energy_j: float, hour_ms: int = NOON_MS) -> Row:
    what = {"capability": "llm.chat", "model": "small", "units": {"new_tokens": tokens}}
    return row(
        Usage, submitter=submitter, jobs=1, seconds=1800.0, energy_j=energy_j, cost_usd=0.1, hour_ms=hour_ms, **what
    )


FAST = (
    *(run("small", 100, 1.0), run("small", 100, 1.0), run("large", 10, 1.0)),
    *(usage("UEVE", 1000, 50.0), usage("UEVE", 1000, 150.0), usage("UBOB", 500, 100.0, NOON_MS + 3_600_000)),
    *(attempt("slow", 1.0, 2.0), attempt("slow", 1.0, 2.0), attempt("slow", 1.0, 1.0), attempt("true", 2.0, 2.0)),
    *(attempt(name, 1.0, 0.1, "node_lost") for name in ("slow", "true", "true")),
    *(row(Samples, at_ms=at_ms, span_s=10.0, power_w=w) for at_ms, w in ((NOW_MS - 7_200_000, 100.0), (1, 9.0))),
    *(row(Bids, name="slow", decline_code="busy", why="no slot"), row(Bids, name="me", decline_code="busy", made=True)),
    *(row(Jobs, job="short", waited_s=0.1), row(Jobs, job="long", waited_s=9.0)),
)
SLOW = (run("small", 100, 10.0), run("large", 30, 2.0), usage("UEVE", 1000, 10.0))


class Node:
    def __init__(self, folder: Path, rows: tuple[Row, ...]) -> None:
        self.store = Store(folder)
        insert(self.store.open(), *rows)

    def ask(self, sql: str, format: str) -> Told:
        query = encode({"sql": sql, "limit": 1000, "timeout_s": 60.0, "format": format})
        with self.store.reading() as connection:
            told: Told = decode(sandbox.answer(connection, "select", query, self.store.out), Told)
        assert told.error is None, told.error
        return told


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Node]]:
    found = {name: Node(tmp_path_factory.mktemp(name), rows) for name, rows in (("fast", FAST), ("slow", SLOW))}
    yield found
    for node in found.values():
        node.store.close()


async def answer(nodes: dict[str, Node], example: Example, folder: Path) -> list[dict[str, Any]]:
    if not example.over:
        told = nodes["fast"].ask(example.sql, "rows")
    else:
        async with Joiner(folder) as joiner:
            for name, node in nodes.items():
                part = node.ask(example.sql, "peer")
                await joiner.keep(name, name, part.columns, part.parquet)
            told, refused = await joiner.join(Query(sql=example.over, limit=100, timeout_s=60), 1000)
            assert refused == {}
            assert told.error is None, told.error
    return [dict(zip([column.name for column in told.columns], found, strict=True)) for found in told.rows]


EXPECTED: dict[str, list[dict[str, Any]]] = {
    "Which node is the fastest": [
        {"model": "large", "node": "slow", "runs": 1, "tokens_per_s": 15.0},
        {"model": "small", "node": "fast", "runs": 2, "tokens_per_s": 100.0},
    ],
    "What does each node need for 1,000": [
        {"model": "small", "node": "fast", "joules_per_1000_tokens": 120.0},
        {"model": "small", "node": "slow", "joules_per_1000_tokens": 10.0},
    ],
    "Do the nodes keep": [
        {"name": "slow", "attempts": 3, "median_ratio": 2.0, "p90_ratio": 2.0, "kept_p90": pytest.approx(1 / 3)},
        {"name": "true", "attempts": 1, "median_ratio": 1.0, "p90_ratio": 1.0, "kept_p90": 1.0},
    ],
    "The busiest hours": [{"hour": 12, "jobs": 2, "busy_hours": 1.0}, {"hour": 13, "jobs": 1, "busy_hours": 0.5}],
    "What goes wrong": [
        {"error_code": "node_lost", "name": "true", "attempts": 2, "for_example": "node_lost!"},
        {"error_code": "node_lost", "name": "slow", "attempts": 1, "for_example": "node_lost!"},
    ],
    "Watts over the last day": [{"watts": 100.0, "most": 100.0}],
    "What did a person use": [
        {"submitter": "UEVE", "jobs": 2, "hours": 1.0, "kwh": pytest.approx(200 / 3_600_000), "dollars": 0.2},
        {"submitter": "UBOB", "jobs": 1, "hours": 0.5, "kwh": pytest.approx(100 / 3_600_000), "dollars": 0.1},
    ],
    "Who declined": [{"name": "slow", "decline_code": "busy", "why": "no slot", "times": 1}],
    "Which jobs waited longest": [{"job": "long", "waited_s": 9.0}, {"job": "short", "waited_s": 0.1}],
}


def test_every_example_is_tried_here() -> None:
    assert len(examples()) == len(EXPECTED)
    assert all(any(example.question.startswith(begin) for begin in EXPECTED) for example in examples())


@pytest.mark.parametrize("begin", EXPECTED)
async def test_an_example_finds_what_it_says(nodes: dict[str, Node], tmp_path: Path, begin: str) -> None:
    (example,) = [one for one in examples() if one.question.startswith(begin)]
    found = await answer(nodes, example, tmp_path)
    assert [{key: one[key] for key in keys} for one, keys in zip(found, EXPECTED[begin], strict=True)] == EXPECTED[
        begin
    ]
