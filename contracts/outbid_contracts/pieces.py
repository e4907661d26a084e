"""The pieces of one stream that one side of it has: what makes a stream that moves between nodes whole.

The caller and the job's owner keep the same book. Each piece is numbered from the stream's begin; an attempt that goes
on where another was lost counts on, so a piece's number says whether it is news, and a number too high that some got
lost on the way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from outbid_contracts.events import AttemptLost, Awarded, Chunk, JobEvent

Taken = Literal["taken", "old", "hole"]
"""old: of an attempt that was given up, or had already; hole: some before it are missing."""


class Pieces:
    """`data` in order, over all attempts up to `attempt`.

    >>> pieces = Pieces([{"text": "a"}, {"text": "b"}], attempt=1)
    >>> pieces.take(Chunk(job="j", seq=2, attempt=1, data={"text": "c"}))
    'taken'
    >>> pieces.award(2, 1)  # the second attempt goes on after the first piece
    True
    >>> pieces.take(Chunk(job="j", seq=3, attempt=1, data={"text": "d"}))
    'old'
    >>> pieces.take(Chunk(job="j", seq=1, attempt=2, data={"text": "B"})), len(pieces.data)
    ('taken', 2)
    """

    def __init__(self, data: Iterable[dict[str, Any]] = (), attempt: int = 0) -> None:
        self.data = list(data)
        self.attempt = attempt
        self.lost = 0
        """Attempts up to this one were given up."""

    def award(self, attempt: int, chunks: int) -> bool:
        """A new attempt goes on after `chunks` pieces, so any after them are void. False if they are not all here."""
        if attempt > self.attempt:
            self.attempt = attempt
            del self.data[chunks:]
        return len(self.data) >= chunks

    def lose(self, attempt: int) -> None:
        """An attempt was given up: what still comes of it is void, for the owner as for the caller."""
        self.lost = max(self.lost, attempt)

    def take(self, chunk: Chunk) -> Taken:
        """A piece has come. One of a new attempt may come before the news of its award."""
        if chunk.attempt < self.attempt or chunk.attempt <= self.lost:
            return "old"
        self.award(chunk.attempt, chunk.seq)
        if chunk.seq != len(self.data):
            return "old" if chunk.seq < len(self.data) else "hole"
        self.data.append(chunk.data)
        return "taken"

    def replay(self, events: Iterable[JobEvent]) -> None:
        """Take in events kept elsewhere, as far as they are without a hole."""
        for event in events:
            if isinstance(event, Awarded) and not self.award(event.attempt, event.chunks):
                return
            if isinstance(event, Chunk) and self.take(event) == "hole":
                return
            if isinstance(event, AttemptLost):
                self.lose(event.attempt)
