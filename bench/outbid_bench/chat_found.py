"""What the subset `chat` found of chats at once: who was compared, and its figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from outbid_bench.chat_engine import Answer
from outbid_bench.stats import Spread, percentile, spread

XLLAMACPP = "xllamacpp's own server"
LLAMA_CPP = "llama_cpp.server"
NATS = "Outbid, plain nats"


def direct_name(engine: str) -> str:
    return f"{engine}, called directly"


def mesh_name(engine: str) -> str:
    return f"Outbid with {engine}"


@dataclass(slots=True)
class Figures:
    """Of one contender at one level, one number per round: tokens per second of all chats together, the median of the
    seconds to their first text, and what 99 of 100 pauses between two pieces do not exceed.
    """

    per_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    gap_p99_s: list[float] = field(default_factory=list)

    def add(self, answers: Sequence[Answer], took_s: float) -> None:
        self.per_s.append(sum(answer.tokens for answer in answers) / took_s)
        self.first_s.append(statistics.median(answer.first_s for answer in answers))
        self.gap_p99_s.append(percentile([gap for answer in answers for gap in answer.gaps_s], 0.99))

    def added_first_s(self, to: Figures) -> Spread:
        """Round by round."""
        return spread(mine - theirs for mine, theirs in zip(self.first_s, to.first_s, strict=True))


Found = Mapping[str, Mapping[int, Figures]]
"""By contender and level."""
