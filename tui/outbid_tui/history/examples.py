"""The example queries of docs/history.md, which is not installed with the program. A test keeps the two the same."""

from __future__ import annotations

from typing import NamedTuple


class Example(NamedTuple):
    """`over` is empty for a query that is for one node."""

    title: str
    sql: str
    over: str = ""


EXAMPLES: tuple[Example, ...] = (
    Example(
        "Fastest node for each model",
        """SELECT model, counts['new_tokens'] AS tokens, seconds['new_tokens'] AS s
FROM runs WHERE outcome = 'done' AND seconds['new_tokens'] > 0""",
        """SELECT model, node, count(*) AS runs, sum(tokens) / sum(s) AS tokens_per_s
FROM answers GROUP BY model, node
QUALIFY row_number() OVER (PARTITION BY model ORDER BY tokens_per_s DESC) = 1
ORDER BY model""",
    ),
    Example(
        "Joules for 1,000 tokens",
        """SELECT model, sum(energy_j) AS joules, sum(units['new_tokens']) AS tokens
FROM usage WHERE capability = 'llm.chat' GROUP BY ALL""",
        """SELECT model, node, 1000 * joules / tokens AS joules_per_1000_tokens
FROM answers WHERE tokens > 0 ORDER BY ALL""",
    ),
    Example(
        "Are promises kept?",
        """SELECT name, count(*) AS attempts,
       median(took_s / promised_s) AS median_ratio,
       quantile_cont(took_s / promised_s, 0.9) AS p90_ratio,
       avg((took_s <= promised_p90_s)::INT) AS kept_p90
FROM attempts WHERE error_code = '' AND promised_s > 0 AND took_s IS NOT NULL
GROUP BY name ORDER BY median_ratio DESC""",
    ),
    Example(
        "Busiest hours of the day",
        """SELECT hour(to_timestamp(hour_ms / 1000)) AS hour, sum(jobs) AS jobs, sum(seconds) / 3600 AS busy_hours
FROM usage GROUP BY hour ORDER BY busy_hours DESC""",
    ),
    Example(
        "What goes wrong, and where",
        """SELECT error_code, name, count(*) AS attempts, max(error) AS for_example
FROM attempts WHERE error_code <> '' GROUP BY ALL ORDER BY attempts DESC""",
    ),
    Example(
        "Watts of the last day",
        """SELECT time_bucket(INTERVAL 1 HOUR, to_timestamp(at_ms / 1000)) AS hour,
       sum(power_w * span_s) / sum(span_s) AS watts,
       max(power_w) AS most
FROM samples
WHERE at_ms > epoch_ms(now()) - 86_400_000 AND power_w IS NOT NULL
GROUP BY hour ORDER BY hour""",
    ),
    Example(
        "What each person used",
        """SELECT submitter, capability, model, sum(jobs) AS jobs, sum(seconds) / 3600 AS hours,
       sum(energy_j) / 3_600_000 AS kwh, sum(cost_usd) AS dollars
FROM usage GROUP BY ALL ORDER BY dollars DESC""",
    ),
    Example(
        "Who declined, and why",
        """SELECT name, decline_code, why, count(*) AS times
FROM bids WHERE decline_code <> '' AND NOT made GROUP BY ALL ORDER BY times DESC""",
    ),
    Example(
        "Which jobs waited longest",
        """SELECT job, capability, model, waited_s, took_s, name FROM jobs ORDER BY waited_s DESC LIMIT 20""",
    ),
)
