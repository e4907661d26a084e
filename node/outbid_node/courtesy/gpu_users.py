"""Who else is on the graphics processors: never our own runners, nor those of another node on this machine."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence

import psutil

from outbid_contracts.messages import Gpu
from outbid_node.courtesy.readings import GpuUse
from outbid_node.resources.nvidia import GpuProcess, Nvidia
from outbid_node.runners.supervisor import KIT

log = logging.getLogger(__name__)


class GpuUsers:
    """`nvidia` is this object's own: NVML counts how often it was opened."""

    def __init__(self, nvidia: Nvidia, counts_from: float) -> None:
        """`counts_from`: percent of load below which a card's load is not looked into."""
        self._nvidia, self._counts_from = nvidia, counts_from

    def read(self, gpus: Sequence[Gpu], runners: Collection[int], running: int) -> tuple[GpuUse, ...]:
        """`gpus`: the probe's last reading. `runners`: pids of ours that have memory there. `running`: attempts here.

        Load of a card that does not tell by process counts only while no runner at all could be its cause.
        """
        found: list[GpuUse] = []
        told = self._told()
        if told:
            found += strangers([process for card in told for process in card], runners)
        blind = [gpu for gpu in gpus if gpu.vendor == "amd" or (gpu.vendor == "nvidia" and not any(told))]
        loads = [load for gpu in blind if (load := gpu.busy_percent or 0.0) >= self._counts_from]
        if loads and not running and not other_nodes_runners():
            found.append(GpuUse("", busy_percent=max(loads)))
        return tuple(found)

    def _told(self) -> list[list[GpuProcess]]:
        try:
            return self._nvidia.processes()
        except Exception as error:  # NVML's own errors, whose module may be missing
            log.debug(
                "who is on the graphics processors is not known: %s", error, extra={"action": "gpu_users_unknown"}
            )
            return []


def strangers(processes: Sequence[GpuProcess], runners: Collection[int]) -> Iterable[GpuUse]:
    """In a container the driver may tell numbers of the host's processes. Then none of them is one of our runners that
    are certainly there, or none exists here, and they say nothing.
    """
    ours = [process for process in processes if process.pid in runners]
    if runners and not ours:
        return
    for process in processes:
        if process.pid in runners:
            continue
        try:
            other = psutil.Process(process.pid)
            if not _is_runner(other):
                yield GpuUse(other.name(), process.busy_percent, process.memory_percent)
        except psutil.Error:
            continue


def other_nodes_runners() -> bool:
    """Whether any process here is a runner. Reads the command lines of all Pythons, so ask seldom."""
    for process in psutil.process_iter(["name"]):
        if "python" in (process.info["name"] or "").lower() and _is_runner(process):
            return True
    return False


def _is_runner(process: psutil.Process) -> bool:
    """One that we may not look into is somebody else's."""
    try:
        return KIT in process.cmdline()
    except psutil.AccessDenied:
        return False
    except psutil.Error:
        return True
