"""Conversations of five turns: whether what was said before is read again before each answer.

Two conversations take turns, so that a server with one cache for all callers must drop what it knows. The same prompt
with another beginning, which nobody has read before, says what reading all of it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from outbid_bench.chat_asking import Ask
from outbid_bench.stats import Spread, ratios, spread

TURNS = 5
CONVERSATIONS = 2
TOKENS = 4
"""Of each answer: what counts is the time to its first."""

SAID = (
    "We plan a long train journey through the mountains in autumn, with two children and a dog.",
    "We like three nights in one place better than moving on every day.",
    "The younger child gets sick on winding roads, so please no coaches.",
    "My brother joins us on the fourth day and brings his bicycle.",
    "Now tell me where we should get off first, and what we can do if it rains.",
)

ANEW = "turn 5, read anew"


@dataclass(slots=True)
class Turns:
    """Seconds to the first text: of each contender's turns, one number per round."""

    first_s: dict[str, list[list[float]]] = field(default_factory=dict)
    anew_s: dict[str, list[float]] = field(default_factory=dict)

    async def measure(self, name: str, ask: Ask, opening: Callable[[], str]) -> None:
        """`opening` gives words that nobody has read yet."""
        talks = [[opened_with(opening())] for _ in range(CONVERSATIONS)]
        found: list[list[float]] = [[] for _ in talks]
        for said in SAID:
            for talk, first_s in zip(talks, found, strict=True):
                talk.append({"role": "user", "content": said})
                answer = await ask(talk, TOKENS)
                talk.append({"role": "assistant", "content": answer.text})
                first_s.append(answer.first_s)
        self.first_s.setdefault(name, []).append([sum(turn) / len(turn) for turn in zip(*found, strict=True)])
        anew = await ask([opened_with(opening()), *talks[0][1:-1]], TOKENS)
        self.anew_s.setdefault(name, []).append(anew.first_s)

    def turn(self, name: str, number: int) -> Spread:
        """From 1."""
        return spread(round[number - 1] for round in self.first_s[name])

    def last_of_anew(self, name: str) -> Spread:
        return ratios([round[-1] for round in self.first_s[name]], self.anew_s[name])

    def rows(self) -> list[tuple[str, ...]]:
        return [
            (
                name,
                *(self.turn(name, number).scaled(1000).text("", 0) for number in range(1, TURNS + 1)),
                spread(self.anew_s[name]).scaled(1000).text("", 0),
                self.last_of_anew(name).text("x"),
            )
            for name in self.first_s
        ]

    def series(self) -> Mapping[str, Sequence[tuple[float, Spread]]]:
        """For a plot, in milliseconds over turns."""
        return {
            name: [(number, self.turn(name, number).scaled(1000)) for number in range(1, TURNS + 1)]
            for name in self.first_s
        }


COLUMNS = ("first token, ms", *(f"turn {number}" for number in range(1, TURNS + 1)), ANEW, "turn 5 of anew")


def opened_with(opening: str) -> dict[str, str]:
    """A conversation's first message."""
    return {"role": "system", "content": f"{opening}: you help travellers."}
