"""Rows of which only those on view are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

from outbid_tui.looks import Cell


class LazyCells(Sequence[Cell]):
    """The cells of one row, made when somebody first looks at one: of a thousand rows a screen shows fifty."""

    __slots__ = ("_cells", "_make")

    def __init__(self, make: Callable[[], Sequence[Cell]]) -> None:
        self._make = make
        self._cells: Sequence[Cell] | None = None

    @property
    def cells(self) -> Sequence[Cell]:
        if self._cells is None:
            self._cells = tuple(self._make())
        return self._cells

    @overload
    def __getitem__(self, at: int) -> Cell: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Cell]: ...
    def __getitem__(self, at: int | slice) -> Cell | Sequence[Cell]:
        return self.cells[at]

    def __len__(self) -> int:
        return len(self.cells)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LazyCells) and self.cells == other.cells

    def __hash__(self) -> int:
        return id(self)
