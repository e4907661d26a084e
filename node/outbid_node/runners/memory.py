"""Memory of two kinds, the machine's own and the graphics card's: what runners need, and what others leave of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from outbid_contracts.messages import Resources

SETTLE_S = 5.0
"""After a runner of ours came or went, the probe's readings (up to 2 s old) say nothing about the others."""

NOTICED = 0.02
"""Changes of what others hold below this part of the total are ignored, so that no offer swings with a browser tab."""

USABLE = 0.95
"""What free memory beyond our budget's reach may be filled to; estimates are no better than that."""


@dataclass(frozen=True, slots=True)
class Memory:
    """In MiB."""

    ram_mib: float = 0.0
    gpu_mib: float = 0.0

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.ram_mib + other.ram_mib, self.gpu_mib + other.gpu_mib)

    def __sub__(self, other: Memory) -> Memory:
        return Memory(self.ram_mib - other.ram_mib, self.gpu_mib - other.gpu_mib)

    def __bool__(self) -> bool:
        """Whether it is more than nothing, of either kind."""
        return self.ram_mib > 0 or self.gpu_mib > 0

    def fits(self, budget: Memory) -> bool:
        return not self - budget

    def helps(self, short: Memory) -> bool:
        """Whether giving it back would make what is short less."""
        return (short.ram_mib > 0 and self.ram_mib > 0) or (short.gpu_mib > 0 and self.gpu_mib > 0)

    def least(self, other: Memory) -> Memory:
        return Memory(min(self.ram_mib, other.ram_mib), min(self.gpu_mib, other.gpu_mib))

    def placed(self, budget: Memory) -> Memory:
        """What the card's budget cannot hold counts as the machine's own memory, where engines put it: all of it
        without a card (the runner falls back to the processor) or with unified memory, the rest of a model that is too
        large for the card (layers or parts stay outside).
        """
        gpu_mib = min(self.gpu_mib, budget.gpu_mib)
        return Memory(self.ram_mib + self.gpu_mib - gpu_mib, gpu_mib)

    def __str__(self) -> str:
        """The kind that there is more than nothing of, the card's first: for what is short."""
        return f"{gib(self.gpu_mib)} more GPU" if self.gpu_mib > 0 else f"{gib(self.ram_mib)} more"


def gib(mib: float) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"


def total(parts: Iterable[Memory]) -> Memory:
    return sum(parts, Memory())


def whole_and_free(found: Resources) -> tuple[Memory, Memory]:
    """What this machine has, and what of it is free. Of several cards the one with the most memory counts; a card that
    uses the machine's own memory has none.
    """
    card = max((gpu for gpu in found.gpus if not gpu.unified), key=lambda gpu: gpu.memory_mib or 0, default=None)
    size_mib = (card.memory_mib if card else None) or 0
    free_mib = card.memory_free_mib if card and card.memory_free_mib is not None else size_mib
    return Memory(found.memory_mib, size_mib), Memory(found.memory_free_mib, free_mib)


T = TypeVar("T")


def enough(candidates: Sequence[T], need: Callable[[T], Memory], short: Memory) -> list[T] | None:
    """The first of `candidates` that together give back what is short, without those that are not needed for it; None
    if all of them are not enough.
    """
    chosen: list[T] = []
    left = short
    for candidate in candidates:
        if left and need(candidate).helps(left):
            chosen.append(candidate)
            left = left - need(candidate)
    if left:
        return None
    for candidate in chosen[:-1]:  # an earlier one may have become needless by a later, larger one
        if not left + need(candidate):
            chosen.remove(candidate)
            left = left + need(candidate)
    return chosen


class Others:
    """What other programs hold: the total less what is free and what is ours, taken while ours does not change."""

    def __init__(self) -> None:
        self.held = Memory()

    def leave(self, budget: Memory, whole: Memory) -> Memory:
        """The budget, or what of it can be had now beside them. A total of 0 is not known."""
        ram_mib = USABLE * whole.ram_mib - self.held.ram_mib if whole.ram_mib else budget.ram_mib
        gpu_mib = USABLE * whole.gpu_mib - self.held.gpu_mib if whole.gpu_mib else budget.gpu_mib
        return budget.least(Memory(max(0.0, ram_mib), max(0.0, gpu_mib)))

    def observe(self, whole: Memory, free: Memory, ours: Memory) -> bool:
        """Take in a reading of the probe; True if it changed what is known."""
        seen = whole - free - ours
        ram_mib = _noticed(self.held.ram_mib, max(0.0, seen.ram_mib), whole.ram_mib)
        gpu_mib = _noticed(self.held.gpu_mib, max(0.0, seen.gpu_mib), whole.gpu_mib)
        before, self.held = self.held, Memory(ram_mib, gpu_mib)
        return before != self.held


def _noticed(before: float, seen: float, whole: float) -> float:
    return seen if abs(seen - before) > NOTICED * whole else before
