"""From pieces of bytes to text that may be shown: whole characters only, and never a part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Utf8Assembler:
    """Joins bytes to whole characters. Tokens may split a character; its first bytes wait here for the rest.

    >>> assembler = Utf8Assembler()
    >>> assembler.add(bytes([0xE2, 0x82])), assembler.add(bytes([0xAC]) + b"5")
    ('', '€5')
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, data: bytes) -> str:
        return self._decoder.decode(data)

    def end(self) -> str:
        """What is left; an unfinished character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)


class StopHolder:
    """Holds back the end of a text while it might begin a stop string, and cuts the text at the first one found.

    >>> holder = StopHolder(["END"])
    >>> holder.add("one E"), holder.add("ight"), holder.add(" EN"), holder.add("D two"), holder.found
    ('one ', 'Eight', ' ', '', True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """The text that may go out now; nothing more once `found`."""
        if not self._stops or self.found:
            return "" if self.found else text
        held = self._held + text
        at = min((n for n in map(held.find, self._stops) if n >= 0), default=-1)
        if at >= 0:
            self.found, self._held = True, ""
            return held[:at]
        keep = max(_overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def end(self) -> str:
        """What was held back in vain."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, shorter than `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
