"""What a node learnt before it started, read from its history."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from outbid_contracts.ids import NodeId
from outbid_node.estimating.learner import LOADS, WINDOW, WarmUp
from outbid_node.estimating.run import Run
from outbid_node.estimating.speeds import Kind, Recalled
from outbid_node.estimating.trust import HALF_LIFE_S, REMEMBERED, Trust
from outbid_node.history.interface import History

MOST_ROWS = 20_000
"""The last written that are looked at: at 10 million the whole table would take seconds."""

TRUST_S = 8 * HALF_LIFE_S

SINCE = f"SELECT min(ended_ms) FROM runs WHERE rowid > (SELECT max(rowid) FROM runs) - {MOST_ROWS}"
"""Asked first: with a constant for it the next one reads only the blocks that it needs (70 ms of CPU time instead of
800 at a million runs). Rows are numbered as they are written, so this reads one block, where the newest by `ended_ms`
take a look at each. The next one cannot do the same: DuckDB 2.0 fails on `rowid` beside QUALIFY.
"""

RUNS = f"""
SELECT capability, model, device, warm, beside, part, work, counts, seconds, took_s, ended_ms, cpu_share
FROM runs WHERE outcome = 'done' AND ended_ms >= ?
QUALIFY row_number() OVER (PARTITION BY capability, model, device ORDER BY ended_ms DESC) <= {WINDOW}
ORDER BY ended_ms
"""

WARM_UPS = f"""
SELECT capability, model, device, load_s, rates, fixed_s, cpu_share, source
FROM (
    SELECT at_ms, capability, model, device, load_s, rates, fixed_s, cpu_share, 'warm-up' AS source
    FROM loads WHERE error = ''
    UNION ALL
    SELECT at_ms, capability, model, device, load_s, rates, fixed_s, cpu_share, 'calibration' AS source
    FROM calibrations
)
QUALIFY row_number() OVER (PARTITION BY capability, model, device ORDER BY at_ms DESC) <= {LOADS}
ORDER BY at_ms
"""

PROMISES = f"""
SELECT node, capability, promised_s, took_s, error_code = '', ended_ms
FROM attempts
WHERE ended_ms > ? AND promised_s IS NOT NULL AND took_s IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY node, capability ORDER BY ended_ms DESC) <= {REMEMBERED}
ORDER BY ended_ms
"""


async def recall_speeds(history: History, cpu_share: float) -> dict[Kind, Recalled]:
    """The newest runs and warm-ups of each capability, model and device. `cpu_share`: what a runner may use now; times
    measured under another are converted.
    """
    found: dict[Kind, Recalled] = {}
    for capability, model, device, load_s, rates, fixed_s, share, source in await history.read(WARM_UPS):
        scale = share / cpu_share
        recalled = found.setdefault((capability, model), Recalled())
        recalled.device = device or recalled.device
        recalled.warm_ups.setdefault(device, []).append(
            WarmUp(_times(load_s, scale), _all_times(rates, scale), _times(fixed_s, scale), source)
        )
    since = [since_ms for (since_ms,) in await history.read(SINCE) if since_ms is not None]
    for capability, model, device, *rest in await history.read(RUNS, since) if since else ():
        recalled = found.setdefault((capability, model), Recalled())
        recalled.device = device or recalled.device
        recalled.runs.setdefault(device, []).append(_run(rest, cpu_share))
    return found


async def recall_promises(history: History, trust: Trust) -> None:
    now_ms = time.time() * 1000
    for node, capability, promised_s, took_s, done, ended_ms in await history.read(
        PROMISES, [int(now_ms - TRUST_S * 1000)]
    ):
        ago_s = max(0.0, (now_ms - ended_ms) / 1000)
        trust.note(NodeId(node), capability, promised_s, took_s, done=done, ago_s=ago_s)


def _run(row: Sequence[Any], cpu_share: float) -> Run:
    warm, beside, part, work, counts, seconds, took_s, ended_ms, share = row
    scale = share / cpu_share
    return Run(
        work=work or {},
        measured={unit: (count, (seconds or {}).get(unit, 0.0) * scale) for unit, count in (counts or {}).items()},
        took_s=_times(took_s, scale),
        warm=bool(warm),
        beside=float(beside or 0),
        part=bool(part),
        at_s=ended_ms / 1000,
    )


def _times(seconds: float | None, scale: float) -> float | None:
    return None if seconds is None else seconds * scale


def _all_times(seconds: Mapping[str, float] | None, scale: float) -> dict[str, float]:
    return {unit: each * scale for unit, each in (seconds or {}).items()}
