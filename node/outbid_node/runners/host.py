"""What a supervisor needs of its pool."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from outbid_contracts import runner as wire
from outbid_node.prefix import Prefixes
from outbid_node.runners.channel import Channel
from outbid_node.runners.limits import Limits
from outbid_node.runners.machine import State

if TYPE_CHECKING:
    from outbid_node.runners.supervisor import Supervisor


class Host(Protocol):
    """The pool, as its supervisors see it."""

    channel: Channel
    limits: Limits
    prefixes: Prefixes
    cpu_share: float
    nice: int
    log: logging.Logger

    @property
    def has_card(self) -> bool:
        """Whether this node has graphics memory for runners."""

    def admit(self, supervisor: Supervisor) -> None:
        """Call `spawn` when there is memory for it."""

    def moved(self, supervisor: Supervisor, before: State) -> None:
        """Its state was `before`."""

    def changed(self) -> None:
        """There may be room where there was none."""

    def loaded(self, supervisor: Supervisor) -> None:
        """Its memory has been measured."""

    def load_failed(self, supervisor: Supervisor, after_s: float, why: str) -> None:
        """Its process ended before it was ready."""

    def forget(self, key: wire.AttemptKey) -> None:
        """This attempt has ended."""
