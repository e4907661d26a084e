"""What the plots ask of the nodes: one query for all of them, so that each node is asked once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outbid_tui.history.braille import LINES, Line, Point

LIMIT = 2_000
"""Rows of each node, and of the answer."""


@dataclass(frozen=True)
class Range:
    """So much of the past, in pieces of `bucket_s`, which are averaged where the data are."""

    name: str
    span_s: int
    bucket_s: int


RANGES = (Range("1 h", 3600, 60), Range("24 h", 86_400, 900), Range("7 d", 604_800, 7200))

PLOTS: Mapping[str, str] = {
    "speed": "Tokens per second",
    "watts": "Watts",
    "waiting": "Jobs that wait",
    "promise": "Taken against promised",
}
RATIOS = frozenset({"promise"})

_PARTS = (
    (
        "speed",
        "runs",
        "ended_ms",
        "sum(counts['new_tokens']) / sum(seconds['new_tokens'])",
        "seconds['new_tokens'] > 0",
    ),
    ("watts", "samples", "at_ms", "sum(power_w * span_s) / sum(span_s)", "power_w IS NOT NULL"),
    ("waiting", "samples", "at_ms", "max(waiting)", "true"),
    (
        "promise",
        "runs",
        "ended_ms",
        "median(log2(took_s / promised_s))",
        "outcome = 'done' AND promised_s > 0 AND took_s > 0",
    ),
)

# Of many nodes those that did or drew the most; `nodes` tells how many there are.
OVER = f"""
SELECT node, plot, t, v, nodes FROM (
    SELECT *, max(place) OVER (PARTITION BY plot) AS nodes FROM (
        SELECT *, dense_rank() OVER (PARTITION BY plot ORDER BY total DESC, node) AS place FROM (
            SELECT *, sum(abs(v)) OVER (PARTITION BY plot, node) AS total FROM answers)))
WHERE place <= {LINES} ORDER BY plot, node, t
"""


def question(range: Range, now_s: float) -> str:
    """For each node: (plot, t in seconds, v)."""
    since_ms, bucket_ms = int((now_s - range.span_s) * 1000), range.bucket_s * 1000
    return "\nUNION ALL\n".join(
        f"SELECT '{name}' AS plot, ({at} // {bucket_ms}) * {range.bucket_s} AS t, CAST({value} AS DOUBLE) AS v\n"
        f"FROM {table} WHERE {at} >= {since_ms} AND {where} GROUP BY t"
        for name, table, at, value, where in _PARTS
    )


@dataclass(frozen=True)
class Answer:
    """The lines of one plot, and how many nodes there are beside those shown."""

    lines: Sequence[Line] = ()
    more: int = 0


def answers(rows: Iterable[Sequence[Any]]) -> dict[str, Answer]:
    """By the name of the plot. Lines keep their order, and so their marks, while the same nodes are shown."""
    points: dict[str, dict[str, list[Point]]] = {}
    nodes: dict[str, int] = {}
    for node, plot, t, v, number in rows:
        if isinstance(v, int | float) and math.isfinite(v):
            points.setdefault(plot, {}).setdefault(node, []).append((float(t), float(v)))
            nodes[plot] = number
    return {
        plot: Answer([Line(node, found[node]) for node in sorted(found)], max(0, nodes[plot] - len(found)))
        for plot, found in points.items()
    }
