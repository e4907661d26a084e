"""Which pieces of a model are there, being fetched, or still wanted. Thread-safe: every source has its own thread.

Sources take one piece after the other, so a slow one gets fewer. A piece that its source sits on for longer than
SLOW_S is given to another one as well; whoever is first writes it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from outbid_contracts.files import PIECE_BYTES

SLOW_S = 4.0
WAIT_S = 0.2


@dataclass(frozen=True, slots=True)
class Piece:
    """`number` counts over all files; `index` within the file."""

    number: int
    file: int
    index: int
    offset: int
    length: int


class State(Enum):
    WANTED = 0
    TAKEN = 1
    WRITING = 2
    HERE = 3


class Stopped(Exception):
    """No more is wanted: all is here, or the pull was given up."""


class Pieces:
    """All pieces of the files of a plan."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        self.all: list[Piece] = []
        self.first: list[int] = []
        """Number of each file's first piece."""
        for file, size in enumerate(sizes):
            self.first.append(len(self.all))
            for index, offset in enumerate(range(0, size, PIECE_BYTES)):
                self.all.append(Piece(len(self.all), file, index, offset, min(PIECE_BYTES, size - offset)))
        self._state = [State.WANTED] * len(self.all)
        self._taken: dict[int, tuple[str, float]] = {}
        self._from: dict[int, str] = {}
        self._lowest = 0
        self._changed = threading.Condition()
        self._stopped = False
        self.bytes_here = 0

    def of(self, file: int) -> Sequence[Piece]:
        end = self.first[file + 1] if file + 1 < len(self.first) else len(self.all)
        return self.all[self.first[file] : end]

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def stopped(self) -> bool:
        return self._stopped

    # -- for sources ----------------------------------------------------------------------------------------------

    def take(self, source: str, has: Callable[[Piece], bool], start: int = 0, *, wait: bool = True) -> Piece | None:
        """The next piece for this source, from number `start` on and around; None if there is none just now (`wait`:
        after a moment). Raises Stopped.
        """
        with self._changed:
            piece = self._next(source, has, start)
            if piece is None and wait and not self._stopped:
                self._changed.wait(WAIT_S)
                piece = self._next(source, has, start)
            if self._stopped:
                raise Stopped
            if piece is not None:
                self._state[piece.number] = State.TAKEN
                self._taken[piece.number] = (source, time.monotonic())
            return piece

    def take_following(self, source: str, piece: Piece) -> bool:
        """Also the piece after this one of the same file, if it is free."""
        with self._changed:
            number = piece.number + 1
            if number >= len(self.all) or self.all[number].file != piece.file or self._stopped:
                return False
            if self._state[number] is not State.WANTED:
                return False
            self._state[number] = State.TAKEN
            self._taken[number] = (source, time.monotonic())
            return True

    def touch(self, source: str, piece: Piece) -> None:
        """Some of it came."""
        taken = self._taken.get(piece.number)
        if taken is not None and taken[0] == source:
            self._taken[piece.number] = (source, time.monotonic())

    def release(self, source: str, piece: Piece) -> None:
        """It could not be had there."""
        with self._changed:
            taken = self._taken.get(piece.number)
            if taken is not None and taken[0] == source and self._state[piece.number] is State.TAKEN:
                self._want(piece.number)
                self._changed.notify_all()

    def give_back(self, source: str) -> None:
        """All that this source had taken."""
        with self._changed:
            for number, (who, _) in list(self._taken.items()):
                if who == source and self._state[number] is State.TAKEN:
                    self._want(number)
            self._changed.notify_all()

    def begin_write(self, piece: Piece) -> bool:
        """Whether the caller may write it now; False if it is here already or somebody else is at it."""
        with self._changed:
            if self._state[piece.number] in (State.HERE, State.WRITING) or self._stopped:
                return False
            self._state[piece.number] = State.WRITING
            return True

    def written(self, piece: Piece, source: str) -> None:
        with self._changed:
            self._state[piece.number] = State.HERE
            self._taken.pop(piece.number, None)
            self._from[piece.number] = source
            self.bytes_here += piece.length
            self._changed.notify_all()

    def unwritten(self, piece: Piece) -> None:
        """Writing failed."""
        with self._changed:
            self._want(piece.number)
            self._changed.notify_all()

    # -- for whoever checks ---------------------------------------------------------------------------------------

    def is_here(self, piece: Piece) -> bool:
        return self._state[piece.number] is State.HERE

    def wait_for(self, piece: Piece) -> str:
        """Until it is here; who sent it. Raises Stopped."""
        with self._changed:
            while self._state[piece.number] is not State.HERE:
                if self._stopped:
                    raise Stopped
                self._changed.wait()
            if self._stopped:
                raise Stopped
            return self._from.get(piece.number, "")

    def refuse(self, piece: Piece) -> None:
        """It is wrong: it is wanted again."""
        with self._changed:
            if self._state[piece.number] is State.HERE:
                self.bytes_here -= piece.length
            self._want(piece.number)
            self._changed.notify_all()

    def refuse_from(self, source: str, beyond: Piece) -> list[Piece]:
        """All that this source sent after that piece is wanted again too."""
        with self._changed:
            numbers = [n for n, who in self._from.items() if who == source and n > beyond.number]
        for number in numbers:
            self.refuse(self.all[number])
        return [self.all[number] for number in numbers]

    # -- inside the lock ------------------------------------------------------------------------------------------

    def _want(self, number: int) -> None:
        self._state[number] = State.WANTED
        self._taken.pop(number, None)
        self._from.pop(number, None)
        self._lowest = min(self._lowest, number)

    def _next(self, source: str, has: Callable[[Piece], bool], start: int) -> Piece | None:
        while self._lowest < len(self.all) and self._state[self._lowest] is State.HERE:
            self._lowest += 1
        for number in itertools.chain(range(max(start, self._lowest), len(self.all)), range(self._lowest, start)):
            if self._state[number] is State.WANTED and has(self.all[number]):
                return self.all[number]
        return self._slow(source, has)

    def _slow(self, source: str, has: Callable[[Piece], bool]) -> Piece | None:
        """The piece that another source has had for longest, if that is too long."""
        before = time.monotonic() - SLOW_S
        late = [(since, n) for n, (who, since) in self._taken.items() if who != source and since < before]
        for _, number in sorted(late):
            if has(self.all[number]):
                return self.all[number]
        return None
