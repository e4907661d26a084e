"""Watts of the graphics cards of this machine, all together."""

from __future__ import annotations

import logging
from typing import Any

from outbid_node.resources.amd import Amd
from outbid_node.resources.files import Files
from outbid_node.resources.nvidia import Nvidia, NvmlMissing

log = logging.getLogger(__name__)

MOST_W = 2000.0
"""Of one card. More means that its counter began anew."""
LOOK_S = 1.0
"""Between looks for a card where none told anything: looking for drivers takes longer than reading one."""


class Cards:
    """`source` names what told last: nvml, amdgpu, both, or nothing. `nvml` None: the real module."""

    def __init__(self, files: Files, nvml: Any = None) -> None:
        self._nvidia = Nvidia(files, nvml)
        self._amd = Amd(files)
        self._counted: dict[int, tuple[float, float]] = {}
        self._complaint = ""
        self._look_at = float("-inf")
        self.source = ""

    def watts(self, now: float) -> float | None:
        """The mean since the last call where a card counts joules, else what it draws now. None where none tells."""
        if now < self._look_at:
            return None
        told = {"nvml": self._of_nvidia(now), "amdgpu": self._amd.watts()}
        known = {source: watts for source, watts in told.items() if watts is not None}
        self.source = "+".join(known)
        self._look_at = float("-inf") if known or self._counted else now + LOOK_S
        return sum(known.values()) if known else None

    def _of_nvidia(self, now: float) -> float | None:
        try:
            draws = self._nvidia.draws()
        except NvmlMissing:  # said by the resources
            return None
        except Exception as error:  # whatever the driver's library raises
            self._complain(f"{type(error).__name__}: {error}")
            return None
        self._complaint = ""
        told = [self._card(index, joules, watts, now) for index, (joules, watts) in enumerate(draws)]
        return sum(told) if told and None not in told else None  # type: ignore[arg-type]

    def _card(self, index: int, joules: float | None, watts: float | None, now: float) -> float | None:
        if joules is None:
            return watts
        before, at = self._counted.get(index, (joules, now))
        self._counted[index] = joules, now
        seconds, spent_j = now - at, joules - before
        return spent_j / seconds if seconds > 0 and 0 <= spent_j <= MOST_W * seconds else None

    def _complain(self, why: str) -> None:
        """Once for each reason, not at each beat."""
        if why != self._complaint:
            self._complaint = why
            log.warning("the cards' watts cannot be read: %s", why, extra={"action": "cards_unread"})
