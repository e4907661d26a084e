"""What each submitter may have of this owner: a weight among those that wait, and limits.

Every node owns the jobs that were handed to it and knows only those: shares and limits hold per owner, not for the mesh
as a whole.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from outbid_contracts.errors import Busy
from outbid_node.config import Config
from outbid_node.config_sections import QuotasSection, weight_of
from outbid_node.identity.keyring import Keyring, KeyringUnusable

log = logging.getLogger(__name__)

USUAL_SHARE = 0.8
"""Of the places for waiting callers, what one submitter may have where nothing else is said."""

HOUR_S = 3600.0


class Quotas:
    def __init__(
        self,
        section: QuotasSection | None = None,
        room: int = 1000,
        people: Mapping[str, str] | None = None,
    ) -> None:
        """`room`: callers that may wait in all (`limits.max_waiting`). `people`: names by public key."""
        section = section or QuotasSection()
        self.weights = _weights(section.weights, people or {})
        self.max_waiting = _share(room) if section.max_waiting == "auto" else section.max_waiting
        self.max_running = section.max_running
        self.running: Callable[[str], int] = lambda submitter: 0
        """Jobs of that submitter that run now, on whatever node."""
        self._per_hour = section.jobs_per_hour
        self._left: dict[str, tuple[float, float]] = {}

    def admit(self, submitter: str, jobs: int = 1) -> None:
        """Count new jobs. Raises Busy beyond `jobs_per_hour`: a bucket that holds an hour's worth and fills evenly."""
        if not self._per_hour:
            return
        now, most = time.monotonic(), float(self._per_hour)
        left, since = self._left.get(submitter, (most, now))
        left = min(most, left + (now - since) * most / HOUR_S)
        if left < jobs:
            again_s = (jobs - left) * HOUR_S / most
            raise Busy(
                f"this submitter may hand in {self._per_hour} jobs an hour here (quotas.jobs_per_hour);"
                f" the next in {again_s:.0f} s"
            )
        self._left[submitter] = left - jobs, now

    def check_waiting(self, waiting: int) -> None:
        """Raises Busy if a submitter that has so many callers waiting may not have one more."""
        if waiting >= self.max_waiting:
            raise Busy(f"{waiting} jobs of this submitter wait already (quotas.max_waiting); try again later")

    def may_run(self, submitter: str) -> int | None:
        """How many more of its jobs may begin now; None: as many as there are slots for."""
        return None if not self.max_running else max(0, self.max_running - self.running(submitter))


def quotas_of(config: Config, keyring: Keyring, mesh: str) -> Quotas:
    """Of this node; without the list of names, public keys work all the same."""
    try:
        people = {key: known.name for key, known in keyring.people(mesh).items()}
    except KeyringUnusable as error:
        log.warning("%s", error.message, extra={"action": "people_unreadable"})
        people = {}
    return Quotas(config.quotas, config.limits.max_waiting, people)


def _share(room: int) -> int:
    return max(1, int(USUAL_SHARE * room))


def _weights(lines: tuple[str, ...], people: Mapping[str, str]) -> dict[str, float]:
    """By public key. A name stands for all keys that were given out under it."""
    named = dict(weight_of(line) for line in lines)
    found = {key: named[name] for key, name in people.items() if name in named}
    return named | found
