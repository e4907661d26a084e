"""What one rule wants, and what all of them come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outbid_node.terms import Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`said`: in a sentence for people, also where it only lowers; empty if there is nothing to say.

    `most_s`: the longest job to take. `binds_own`: counts for the jobs that somebody asks for at this very machine,
    too. `gives_back`: what runs and can go on elsewhere shall. `frees_memory`: the person needs what idle models hold.
    `passes`: soon enough for a caller to wait.
    """

    said: str = ""
    refuse: bool = False
    passes: bool = False
    slower: float = 1.0
    most_s: float | None = None
    most_why: str = ""
    binds_own: bool = False
    gives_back: bool = False
    frees_memory: bool = False


NOTHING = Part()


def strictest(parts: Sequence[Part], *, own: bool) -> Terms:
    """All reasons to refuse, the largest factor, the shortest job. `own`: for a job asked for at this machine."""
    counted = [part for part in parts if part.binds_own or not own]
    refusing = [part for part in counted if part.refuse]
    slowest = max(counted, key=lambda part: part.slower, default=NOTHING)
    shortest = min((part for part in counted if part.most_s is not None), key=_most_s, default=NOTHING)
    return Terms(
        refuse=in_words(refusing),
        passes=all(part.passes for part in refusing),
        slower=slowest.slower,
        slower_why=slowest.said if slowest.slower > 1 else "",
        most_s=shortest.most_s,
        most_why=shortest.most_why,
    )


def in_words(parts: Sequence[Part]) -> str:
    return "; ".join(part.said for part in parts if part.said)


def _most_s(part: Part) -> float:
    assert part.most_s is not None
    return part.most_s
