"""The rows of the history: each Struct is a table of that name, each field a column. Prompts and outputs have none.

`_ms` is Unix time in milliseconds. Ids are those of the bus. Maps are from a unit of work or a name to a number.
"""

from __future__ import annotations

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Jobs(Row, frozen=True, kw_only=True, tag="jobs"):
    """A job that this node owned, when it ended."""

    job: str
    capability: str
    model: str | None
    policy: str
    """As JSON."""
    submitter: str
    durable: bool
    priority: str
    state: str
    error_code: str
    error: str
    created_ms: int
    ended_ms: int
    node: str | None
    """Where it was done."""
    name: str
    attempts: int
    promised_s: float | None
    promised_p90_s: float | None
    took_s: float | None
    """From its last award to its end; `waited_s` is what came before."""
    waited_s: float
    energy_j: float | None
    cost_usd: float | None
    work: dict[str, float]
    timings: dict[str, float]


class Attempts(Row, frozen=True, kw_only=True, tag="attempts"):
    """An attempt at a job that this node owned, when it ended."""

    job: str
    attempt: int
    capability: str
    model: str | None
    node: str
    name: str
    started_ms: int
    ended_ms: int
    error_code: str
    error: str
    step: int
    promised_s: float | None
    promised_p90_s: float | None
    took_s: float | None
    energy_j: float | None
    cost_usd: float | None
    warm: bool


class Auctions(Row, frozen=True, kw_only=True, tag="auctions"):
    """An auction that this node held for a job of its own."""

    job: str
    attempt: int
    how: str
    opened_ms: int
    took_ms: float
    asked: int
    winner: str | None
    why: str
    waited_s: float = 0.0
    """What the job waited before it, and for what."""
    waited_for: str = ""


class Bids(Row, frozen=True, kw_only=True, tag="bids"):
    """A bid or decline: `made` by this node for another owner's job, or received for one of its own."""

    job: str
    attempt: int
    made: bool
    at_ms: int
    node: str
    name: str
    capability: str
    model: str | None
    decline_code: str = ""
    """Empty for a bid; `why` is then the reason."""
    temporary: bool = False
    start_s: float | None = None
    finish_s: float | None = None
    finish_p90_s: float | None = None
    energy_j: float | None = None
    cost_usd: float | None = None
    warm: bool = False
    zone: str = ""
    standing: bool = False
    later: bool = False
    score: float | None = None
    parts: dict[str, float] = {}
    stretch: float = 1.0
    excluded: str = ""
    won: bool = False
    why: str = ""


class Runs(Row, frozen=True, kw_only=True, tag="runs"):
    """An attempt that ran on this node, for whichever owner, when it ended: what the estimators learn from."""

    job: str
    attempt: int
    owner: str
    submitter: str
    capability: str
    model: str | None
    device: str
    outcome: str
    """done, failed, stopped."""
    error_code: str
    started_ms: int
    ended_ms: int
    warm: bool
    beside: int
    """Attempts that shared its runner when it began."""
    work: dict[str, float]
    """As asked."""
    counts: dict[str, float]
    """Of each unit of work, as done."""
    seconds: dict[str, float]
    """Spent on each unit of work, as the runner measured."""
    promised_s: float | None
    promised_p90_s: float | None
    took_s: float
    energy_j: float | None
    cost_usd: float | None
    power_source: str
    part: bool = False
    """It went on with what another attempt had begun, so that its amounts are not those of a whole job."""
    slower: float = 1.0
    """By what this node had lengthened its promise on purpose (courtesy)."""
    cpu_share: float = 1.0
    """Of the machine's processor, what its runners were given."""


class Loads(Row, frozen=True, kw_only=True, tag="loads"):
    """A runner that came up with its model, or did not (`error`)."""

    at_ms: int
    capability: str
    model: str | None
    device: str
    load_s: float
    memory_mib: float | None
    gpu_memory_mib: float | None
    rates: dict[str, float]
    """Seconds per unit of work in its warm-up."""
    fixed_s: float | None
    error: str = ""
    cpu_share: float = 1.0


class Samples(Row, frozen=True, kw_only=True, tag="samples"):
    """The machine over `span_s` seconds up to `at_ms`: means, but for what can only be read at one moment."""

    at_ms: int
    span_s: float
    cpu_percent: float | None
    memory_used_mib: float | None
    storage_free_mib: float | None
    disk_read_bytes_s: float | None
    disk_write_bytes_s: float | None
    network_in_bytes_s: float | None
    network_out_bytes_s: float | None
    gpu_percent: float | None
    gpu_memory_used_mib: float | None
    gpu_temperature_c: float | None
    gpu_w: float | None
    temperature_c: float | None
    battery_percent: float | None
    battery_w: float | None
    power_w: float | None
    power_source: str
    running: int
    waiting: int


class Events(Row, frozen=True, kw_only=True, tag="events"):
    """Something that happened to this node or the mesh as it sees it: `kind` is a stable word (node_up, node_gone…)."""

    at_ms: int
    kind: str
    node: str
    text: str


class Calibrations(Row, frozen=True, kw_only=True, tag="calibrations"):
    """One measurement of a capability and model on this machine, made on purpose."""

    at_ms: int
    capability: str
    model: str | None
    device: str
    load_s: float
    fixed_s: float
    rates: dict[str, float]
    crowding: float
    cpu_share: float = 1.0


class Usage(Row, frozen=True, kw_only=True, tag="usage"):
    """What ran on this node within an hour that began at `hour_ms`, summed up: kept for years. Every run is in it, also
    those too short and too many for rows of their own. Several rows of the same hour and kind add up.
    """

    hour_ms: int
    submitter: str
    owner: str
    capability: str
    model: str | None
    jobs: int
    failed: int
    seconds: float
    energy_j: float
    cost_usd: float
    units: dict[str, float]
    """Of work, as done."""


TABLES: tuple[type[Row], ...] = (
    Jobs,
    Attempts,
    Auctions,
    Bids,
    Runs,
    Loads,
    Samples,
    Events,
    Calibrations,
    Usage,
)
