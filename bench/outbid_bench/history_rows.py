"""Ten million rows of a history as a busy node of five would have them after ninety days, made by SQL."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from outbid_node.history.store import Store

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

DAYS = 90
NODES = 5
ROWS_A_JOB = 9
"""A job, an attempt, an auction, a run, and a bid of each node."""

SAMPLES, EVENTS = DAYS * 8640, 222_400

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

_MACROS = f"""
CREATE TEMP MACRO h(x) AS (hash(x) >> 2)::BIGINT;
CREATE TEMP MACRO u(x) AS (h(x) % 1000003) / 1000003.0;
CREATE TEMP MACRO six(x) AS round(x, 6 - ceil(log10(abs(x) + 1e-12))::INTEGER);
CREATE TEMP MACRO base32(n, digits) AS list_aggregate(
    [substr('{_ALPHABET}', ((n >> (5 * (digits - 1 - k)))::BIGINT & 31)::INTEGER + 1, 1) FOR k IN range(digits)],
    'string_agg', '');
CREATE TEMP MACRO capability(i) AS ['llm.chat', 'text.embed', 'image.generate'][1 + h(i * 5) % 3];
CREATE TEMP MACRO model(i) AS ['smollm2-135m', 'qwen3-8b', NULL][1 + h(i * 13) % 3];
CREATE TEMP MACRO took(i) AS six(0.3 + 20 * u(i * 11) * u(i * 37));
CREATE TEMP MACRO prompt(i) AS (h(i * 19) % 2000)::DOUBLE;
"""

_JOBS = """
CREATE TEMP TABLE made AS SELECT i, ms, h(i * 3) % {nodes} AS n, base32(ms, 10) || base32(h(i * 7) >> 11, 10) AS job
FROM (SELECT range AS i, {from_ms} + (range * {step_ms})::BIGINT + h(range) % 5000 AS ms FROM range({jobs}))
ORDER BY ms
"""

_TABLES = (
    """INSERT INTO jobs BY NAME SELECT job, capability(i) AS capability, model(i) AS model,
    '{"goal":"balanced"}' AS policy, 'U' || md5((h(i * 17) % 6)::VARCHAR) AS submitter, false AS durable,
    '' AS priority, 'done' AS state, '' AS error_code, '' AS error, ms AS created_ms,
    ms + (took(i) * 1000)::BIGINT AS ended_ms, 'node000' || n AS node, 'machine' || n AS name, 1 AS attempts,
    six(took(i) * (0.8 + 0.4 * u(i))) AS promised_s,
    six(took(i) * (1.2 + 0.4 * u(i))) AS promised_p90_s, took(i) AS took_s, six(u(i * 41)) AS waited_s,
    six(took(i) * 45.1) AS energy_j, six(took(i) * 4e-6) AS cost_usd,
    MAP {'prompt_tokens': prompt(i), 'new_tokens': 256.0} AS work,
    MAP {'prompt_s': six(took(i) * 0.2), 'generate_s': six(took(i) * 0.8)} AS timings FROM made""",
    """INSERT INTO attempts BY NAME SELECT job, 1 AS attempt, capability(i) AS capability, model(i) AS model,
    'node000' || n AS node, 'machine' || n AS name, ms + 2 AS started_ms, ms + (took(i) * 1000)::BIGINT AS ended_ms,
    '' AS error_code, '' AS error, 0 AS step, six(took(i) * (0.8 + 0.4 * u(i))) AS promised_s,
    six(took(i) * (1.2 + 0.4 * u(i))) AS promised_p90_s, took(i) AS took_s, six(took(i) * 45.1) AS energy_j,
    six(took(i) * 4e-6) AS cost_usd, true AS warm FROM made""",
    """INSERT INTO auctions BY NAME SELECT job, 1 AS attempt, 'asked' AS how, ms + 1 AS opened_ms,
    six(1 + 9 * u(i)) AS took_ms, 5 AS asked, 'node000' || n AS winner,
    'machine' || n || ' finishes ' || six(took(i) * 0.1) || ' s before the next' AS why, 0 AS waited_s,
    '' AS waited_for FROM made""",
    """INSERT INTO bids BY NAME SELECT job, 1 AS attempt, false AS made, ms + 1 AS at_ms, 'node000' || b AS node,
    'machine' || b AS name, capability(i) AS capability, model(i) AS model, if(b = 4, 'busy', '') AS decline_code,
    b = 4 AS temporary, if(b = 4, NULL, 0.0) AS start_s, if(b = 4, NULL, six(took(i) * (0.9 + 0.3 * b))) AS finish_s,
    if(b = 4, NULL, six(took(i) * (1.4 + 0.3 * b))) AS finish_p90_s,
    if(b = 4, NULL, six(took(i) * (45.1 + b))) AS energy_j,
    if(b = 4, NULL, six(took(i) * 4e-6)) AS cost_usd, b <> 4 AS warm, if(b = 4, '', 'lan') AS zone, false AS standing,
    false AS later, if(b = 4, NULL, six(took(i) * (1.1 + b * 0.3))) AS score,
    if(b = 4, MAP {}, MAP {'time': six(took(i) * (1 + b * 0.3)),
    'energy': six(took(i) * 0.0451), 'money': six(took(i) * 4e-3)})
    AS parts, 1.0 AS stretch, '' AS excluded, b = n AS won, if(b = 4, 'all 1 slots are taken',
    'warm; ' || (30 + h(i * 23) % 300) || ' new_tokens/s, ' || (300 + h(i * 29) % 300) || ' prompt_tokens/s; '
    || '1 of 1 slots free; from ' || h(i) % 500 || ' jobs') AS why
    FROM made, (SELECT range AS b FROM range({nodes})) ORDER BY ms, i, b""",
    """INSERT INTO runs BY NAME SELECT job, 1 AS attempt, 'node000' || (n + 1) % {nodes} AS owner,
    'U' || md5((h(i * 17) % 6)::VARCHAR) AS submitter, capability(i) AS capability, model(i) AS model, 'cuda' AS device,
    'done' AS outcome, '' AS error_code, ms + 2 AS started_ms, ms + (took(i) * 1000)::BIGINT AS ended_ms, true AS warm,
    0 AS beside, MAP {'prompt_tokens': prompt(i), 'new_tokens': 256.0} AS work,
    MAP {'prompt_tokens': prompt(i), 'new_tokens': (h(i * 31) % 256)::DOUBLE} AS counts,
    MAP {'prompt_tokens': six(took(i) * 0.2), 'new_tokens': six(took(i) * 0.8)} AS seconds,
    six(took(i) * (0.8 + 0.4 * u(i))) AS promised_s, six(took(i) * (1.2 + 0.4 * u(i))) AS promised_p90_s,
    took(i) AS took_s, six(took(i) * 45.1) AS energy_j, six(took(i) * 4e-6) AS cost_usd, 'rapl+nvml' AS power_source,
    false AS part, 1.0 AS slower, 1.0 AS cpu_share FROM made""",
    """INSERT INTO samples BY NAME SELECT {from_ms} + range * 10000 AS at_ms, 10.0 AS span_s,
    round(100 * u(range), 2) AS cpu_percent, round(8000 + 1000 * u(range * 3), 2) AS memory_used_mib,
    100000 + h(range) % 1000 AS storage_free_mib, round(1e6 * u(range * 5)) AS disk_read_bytes_s,
    round(1e6 * u(range * 7)) AS disk_write_bytes_s, round(1e6 * u(range * 9)) AS network_in_bytes_s,
    round(1e6 * u(range * 11)) AS network_out_bytes_s, round(100 * u(range * 13), 2) AS gpu_percent,
    round(4000 * u(range * 15), 2) AS gpu_memory_used_mib, 40 + h(range) % 30 AS gpu_temperature_c,
    round(300 * u(range * 17), 2) AS gpu_w, 50 + h(range) % 20 AS temperature_c,
    round(400 * u(range * 19), 2) AS power_w,
    'rapl+nvml' AS power_source, h(range) % 3 AS running, 0 AS waiting FROM range({samples})""",
    """INSERT INTO events BY NAME SELECT {from_ms} + range * 35000 AS at_ms, 'node_gone' AS kind,
    'node000' || h(range) % 5 AS node, 'machine' || h(range) % 5 AS text FROM range({events})""",
    """INSERT INTO usage BY NAME SELECT hour_ms, submitter, owner, capability, model, count(*) AS jobs, 0 AS failed,
    sum(took_s) AS seconds, sum(energy_j) AS energy_j, sum(cost_usd) AS cost_usd,
    MAP {'prompt_tokens': sum(counts['prompt_tokens']), 'new_tokens': sum(counts['new_tokens'])} AS units
    FROM (SELECT ended_ms // 3600000 * 3600000 AS hour_ms, * FROM runs) GROUP BY ALL ORDER BY hour_ms""",
)


def fill(folder: Path, rows: int) -> tuple[int, int]:
    """Make a history of about so many rows in `folder`; how many they are, and the bytes of its file."""
    store = Store(folder)
    connection = store.open()
    now_ms = time.time_ns() // 1_000_000
    share = rows / 10_000_000
    jobs = round((rows - share * (SAMPLES + EVENTS)) / ROWS_A_JOB)
    numbers = {
        "nodes": NODES,
        "from_ms": now_ms - DAYS * 86_400_000,
        "step_ms": DAYS * 86_400_000 / jobs,
        "jobs": jobs,
        "samples": round(SAMPLES * share),
        "events": round(EVENTS * share),
    }
    connection.execute(_MACROS)
    for sql in (_JOBS, *_TABLES):
        connection.execute(_filled(sql, numbers))
    made = sum(
        _count(connection, table) for table in ("jobs", "attempts", "auctions", "bids", "runs", "samples", "events")
    )
    connection.close()
    store.close()
    return made, store.file.stat().st_size


def _filled(sql: str, numbers: dict[str, float]) -> str:
    """The braces of maps are SQL's."""
    for name, number in numbers.items():
        sql = sql.replace(f"{{{name}}}", f"{number}")
    return sql


def _count(connection: DuckDBPyConnection, table: str) -> int:
    row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(row[0]) if row else 0
