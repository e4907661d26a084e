"""What `mesh` found for one mesh size, and the names of those that are compared."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from outbid_bench.mesh_parts import Part

BARE, STANDING, ASKED, OUTBID = "bare", "standing", "asked", "outbid"
PLAIN_STANDING, PLAIN_ASKED = "plain standing", "plain asked"


@dataclass(slots=True)
class Found:
    """Of one mesh size; lists have one value for each round. Seconds, jobs per second."""

    nodes: int
    started_s: float = 0.0
    p50: dict[str, list[float]] = field(default_factory=dict)
    p99: dict[str, list[float]] = field(default_factory=dict)
    per_s: dict[str, list[float]] = field(default_factory=dict)
    here: Counter[bool] = field(default_factory=Counter)
    """Jobs by whether the asked node ran them itself."""
    unanswered: int = 0
    """Auctions of the prototype that got no bid in time."""
    cpu_per_job_s: dict[Part, list[float]] = field(default_factory=dict)
    cpu_at_rest: dict[Part, float] = field(default_factory=dict)
    """Of a core."""
    asked_nodes: list[int] = field(default_factory=list)
    auction_s: list[float] = field(default_factory=list)
    """Of one long job each: asking, bids, ranking; as the owner saw it."""
    awarded_s: list[float] = field(default_factory=list)
    """From the caller's request until it hears that the job was awarded."""
    messages: dict[str, dict[str, float]] = field(default_factory=dict)
    """Per job, by capability and kind."""
    other_messages_per_s: float = 0.0
    memory_mib: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    node_mib: list[float] = field(default_factory=list)
