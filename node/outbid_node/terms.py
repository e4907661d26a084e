"""On which terms this node takes work just now: its person, heat, battery and the hours decide (see `courtesy`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Terms:
    """`refuse`: it takes none now, and why; `passes` if waiting helps. `slower`: its times are longer by this factor.

    `most_s`: the longest job that it takes, `most_why` says why.
    """

    refuse: str = ""
    passes: bool = True
    slower: float = 1.0
    slower_why: str = ""
    most_s: float | None = None
    most_why: str = ""


USUAL = Terms()
