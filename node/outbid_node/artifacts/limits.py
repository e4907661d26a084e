"""How much a node keeps, and for whom."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from outbid_contracts.errors import NoSpace, PayloadTooLarge
from outbid_node.config_sections import ArtifactsSection

RESERVE_MIB = 128
"""Free disk that no artifact takes: the ledger needs some to go on (`bus.ledger.NEEDED_MIB`)."""

AUTO_SHARE = 0.1
AUTO_SHARE_FOR_OTHERS = 0.5
AUTO_MOST_MIB = 20 * 1024
"""`max_mib = "auto"`: that part of the disk, and no more than this on a machine that is not there to store."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`folder` lies on the disk in question."""

    folder: Path
    keep_s: float
    most_bytes: int
    largest_bytes: int

    @classmethod
    def of(cls, section: ArtifactsSection, folder: Path, *, for_others: bool) -> Limits:
        most_mib = section.max_mib if section.max_mib != "auto" else _auto_mib(folder, for_others=for_others)
        return cls(
            folder=folder,
            keep_s=section.keep_days * 86_400,
            most_bytes=most_mib * 2**20,
            largest_bytes=section.max_artifact_mib * 2**20,
        )

    def check(self, size: int, under_way: int) -> None:
        """Whether an artifact of `size` bytes may come, beside those that are `under_way`. Raises NoSpace,
        PayloadTooLarge. Asks the file system: call it in a thread.
        """
        if size > self.largest_bytes:
            raise PayloadTooLarge(
                f"the artifact has {_mib(size)}, and this node keeps none above {_mib(self.largest_bytes)} "
                "(`artifacts.max_artifact_mib`)"
            )
        if size > self.most_bytes:
            raise NoSpace(f"the artifact has {_mib(size)}, and this node keeps {_mib(self.most_bytes)} in all")
        free = shutil.disk_usage(self.folder).free - under_way
        if free < size + RESERVE_MIB * 2**20:
            raise NoSpace(
                f"the artifact has {_mib(size)}, and {self.folder} has {_mib(max(0, free))} free, of which "
                f"{RESERVE_MIB} MiB stay free"
            )


def _auto_mib(folder: Path, *, for_others: bool) -> int:
    total_mib = shutil.disk_usage(folder).total / 2**20
    if for_others:
        return max(1, int(total_mib * AUTO_SHARE_FOR_OTHERS))
    return max(1, int(min(total_mib * AUTO_SHARE, AUTO_MOST_MIB)))


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
