"""The history of a running node, put together: the file's process, what is recorded, and the samples of the machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outbid_node.config_sections import HistorySection
from outbid_node.history.frames import Settings
from outbid_node.history.interface import History, NoHistory
from outbid_node.history.kept import KeptHistory
from outbid_node.history.recording import Recording
from outbid_node.history.rows import Samples
from outbid_node.history.samples import Sampler
from outbid_node.resources import ResourceProbe
from outbid_node.runners.pool import device_kind
from outbid_node.runners.supervisor import Key

if TYPE_CHECKING:
    from outbid_node.owner import Owner
    from outbid_node.registry import Registry
    from outbid_node.worker import Worker

USAGE_S = 60.0
"""How often the sums of what ran are written down: what a killed node loses of them."""


class NodeHistory:
    """`log` is what the other parts note to and read from. `start`; `attach` once the node's parts are there; `close`
    after they have stopped.
    """

    def __init__(self, section: HistorySection, state: Path) -> None:
        self.section = section
        self.kept = KeptHistory(state, settings_of(section)) if section.enabled else None
        self.log: History = self.kept or NoHistory()
        self.recording: Recording | None = None
        self.sampler: Sampler | None = None

    @property
    def trouble(self) -> tuple[str, ...]:
        """For people."""
        return (self.kept.trouble,) if self.kept and self.kept.trouble else ()

    @property
    def live(self) -> Sequence[Samples]:
        """One sample for each of the last seconds (some minutes), the newest last."""
        return self.sampler.live if self.sampler else ()

    @property
    def parts(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """What runs as long as the node."""
        found: list[Callable[[], Coroutine[Any, Any, None]]] = [self.sampler.run] if self.sampler else []
        return [*found, self.kept.run, self._sum_up] if self.kept else found

    async def start(self) -> None:
        """Returns before the file is open; who reads waits for that."""
        if self.kept:
            await self.kept.start()

    def attach(self, *, owner: Owner, worker: Worker, registry: Registry, resources: ResourceProbe) -> None:
        """Record what these do from now on."""

        def load() -> tuple[int, int]:
            return len(worker.attempts), len(owner.placer.waiting)

        self.sampler = Sampler(resources.read, load, self.log.note, self.section.sample_s)
        if self.kept is None:
            return
        recording = self.recording = Recording(owner.me, self.log, registry.name_of, worker.pool.cpu_share)
        owner.on_ended, owner.on_lost = recording.job_ended, recording.attempt_lost
        worker.on_ended, worker.on_bid = recording.run_ended, recording.bid_made
        worker.on_ready = lambda capability, model, ready: recording.runner_ready(
            capability, model, device_kind(ready), ready
        )
        worker.pool.on_load_failed = lambda key, after_s, why: recording.runner_failed(
            _capability_of(key, worker), key[1], after_s, why
        )
        registry.on_change.append(recording.node_changed)
        recording.event("node_up")

    def event(self, kind: str, text: str = "") -> None:
        """Something happened to this node; `kind` is a stable word."""
        if self.recording is not None:
            self.recording.event(kind, text=text)

    async def close(self) -> None:
        if self.recording is not None:
            self.recording.flush_usage()
            self.recording.event("node_down")
        if self.kept:
            await self.kept.close()

    async def _sum_up(self) -> None:
        while True:
            await asyncio.sleep(USAGE_S)
            if self.recording is not None:
                self.recording.flush_usage()


def _capability_of(key: Key, worker: Worker) -> str:
    """The first that this runner serves."""
    entries = worker.catalogue.entries
    return next((name for name, entry in entries.items() if entry.capability.runner == key[0]), key[0])


def settings_of(section: HistorySection) -> Settings:
    return Settings(
        keep_days=section.keep_days,
        keep_samples_days=section.keep_samples_days,
        max_mib=section.max_mib,
    )
