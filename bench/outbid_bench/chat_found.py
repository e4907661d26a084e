"""What the subset `chat` found of chats at once: who was compared, and its figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
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
class Together:
    """Chats of one contender, how long they took, and what of the processor's time."""

    answers: list[Answer] = field(default_factory=list)
    took_s: float = 0.0
    cpu_s: float = 0.0

    def add(self, more: Together) -> None:
        self.answers += more.answers
        self.took_s += more.took_s
        self.cpu_s += more.cpu_s


@dataclass(slots=True)
class Figures:
    """Of one contender at one level, one number per round: tokens per second of all chats together, the median of the
    seconds to their first text, what 99 of 100 pauses between two pieces do not exceed, and the processor's seconds per
    token.
    """

    per_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    gap_p99_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def add(self, chats: Together) -> None:
        answers, tokens = chats.answers, sum(answer.tokens for answer in chats.answers)
        self.per_s.append(tokens / chats.took_s)
        self.cpu_s.append(chats.cpu_s / tokens)
        self.first_s.append(statistics.median(answer.first_s for answer in answers))
        self.gap_p99_s.append(percentile([gap for answer in answers for gap in answer.gaps_s], 0.99))

    def added_first_s(self, to: Figures) -> Spread:
        """Round by round."""
        return spread(mine - theirs for mine, theirs in zip(self.first_s, to.first_s, strict=True))


Found = Mapping[str, Mapping[int, Figures]]
"""By contender and level."""
