"""The processor's own energy counters, which Linux shows below /sys/class/powercap (Intel's RAPL; AMD's look the same).

Counted are the packages and, where it has its own counter, the memory (dram). Left out are the parts of a package
(core, uncore), the same counters by another way (intel-rapl-mmio), and psys, which on many boards says nonsense.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from outbid_node.resources.files import Files, number, text

MOST_W = 2000.0
"""Of one domain. More means that the counter began anew (it does after standby), not that it ran over."""

_COUNTED = re.compile(r"(package|dram)\b.*")

RULE = (
    'SUBSYSTEM=="powercap", KERNEL=="intel-rapl:*", '
    'RUN+="/bin/chgrp outbid /sys%p/energy_uj", RUN+="/bin/chmod g+r /sys%p/energy_uj"'
)
"""For udev: the group `outbid` may read. Not everybody: from these counters a program can guess what another one
computes (CVE-2020-8694), which is why only root may read them since 2020.
"""


@dataclass(slots=True)
class _Domain:
    range_j: float
    """After so many joules the counter begins at 0 again."""
    joules: float
    at: float


class Rapl:
    """`denied`: there are counters, and this user may not read them."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._domains: dict[Path, _Domain] = {}
        self.denied = False

    @property
    def readable(self) -> bool:
        """Whether a counter could be read the last time."""
        return bool(self._domains)

    def watts(self, now: float) -> float | None:
        """The mean since the last call. None at the first one, and where a counter is missing or began anew."""
        found = [self._domain(folder, now) for folder in self._folders()]
        return sum(found) if found and None not in found else None  # type: ignore[arg-type]

    def _folders(self) -> list[Path]:
        folders = self._files.glob("sys/class/powercap/intel-rapl:*")
        return [folder for folder in folders if _COUNTED.fullmatch(text(folder / "name") or "")]

    def _domain(self, folder: Path, now: float) -> float | None:
        joules = self._joules(folder / "energy_uj")
        if joules is None:
            self._domains.pop(folder, None)
            return None
        last = self._domains.get(folder)
        range_j = last.range_j if last else (number(folder / "max_energy_range_uj") or 0.0) * 1e-6
        self._domains[folder] = _Domain(range_j, joules, now)
        return _watts(last, joules, now) if last else None

    def _joules(self, file: Path) -> float | None:
        try:
            found = float(read(file)) * 1e-6
        except PermissionError:
            self.denied = True
            return None
        except (OSError, ValueError):
            return None
        self.denied = False
        return found


def read(file: Path) -> str:
    """May raise OSError."""
    return file.read_text("ascii", errors="replace")


def _watts(last: _Domain, joules: float, now: float) -> float | None:
    spent_j = joules - last.joules
    if spent_j < 0:
        spent_j += last.range_j
    seconds = now - last.at
    return spent_j / seconds if seconds > 0 and 0 <= spent_j <= MOST_W * seconds else None
