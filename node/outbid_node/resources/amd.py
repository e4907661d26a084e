"""AMD graphics processors, from what the amdgpu driver shows in /sys/class/drm."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from outbid_contracts.messages import Gpu
from outbid_node.resources.files import Files, asleep, number, scaled, text

AMD = "0x1002"
_NAMES = "usr/share/libdrm/amdgpu.ids"
"""Of libdrm: lines of `device, revision, name`."""


class Amd:
    def __init__(self, files: Files) -> None:
        self._files = files
        self._names: dict[tuple[str, str], str] | None = None
        self._last: dict[Path, Gpu] = {}

    def read(self) -> list[Gpu]:
        """A sleeping processor is told as it was when awake, idle."""
        cards = [card for card in self._files.glob("sys/class/drm/card*/device") if text(card / "vendor") == AMD]
        return [gpu for card in cards if (gpu := self._read(card)) is not None]

    def watts(self) -> float | None:
        """Of all cards together, the sleeping ones at 0; None if none tells. Not of a processor with graphics in it:
        there the driver tells the watts of the whole, which the processor's own counters have.
        """
        cards = [card for card in self._files.glob("sys/class/drm/card*/device") if text(card / "vendor") == AMD]
        told = [0.0 if asleep(card) else _watts(card) for card in cards if not _in_processor(card)]
        return sum(watts for watts in told if watts is not None) if any(watts is not None for watts in told) else None

    def _read(self, card: Path) -> Gpu | None:
        if not asleep(card):
            gpu = self._awake(card)
            if gpu is None:
                return None  # bound to another driver, e.g. handed to a virtual machine
            self._last[card] = gpu
            return gpu
        known = self._last.get(card)
        return Gpu(
            name=known.name if known else self._name(card),
            vendor="amd",
            memory_mib=known.memory_mib if known else None,
            memory_free_mib=known.memory_mib if known else None,
            busy_percent=0.0,
        )

    def _awake(self, card: Path) -> Gpu | None:
        total, used = number(card / "mem_info_vram_total"), number(card / "mem_info_vram_used")
        if total is None:
            return None
        return Gpu(
            name=self._name(card),
            vendor="amd",
            memory_mib=int(total) >> 20,
            memory_free_mib=None if used is None else max(0, int(total - used)) >> 20,
            busy_percent=number(card / "gpu_busy_percent"),
            temperature_c=_first(card, ("hwmon/hwmon*/temp1_input",), 1e-3),
            power_w=_watts(card),
        )

    def _name(self, card: Path) -> str:
        if name := text(card / "product_name"):
            return name
        device, revision = (text(card / which) or "" for which in ("device", "revision"))
        key = (device.removeprefix("0x").upper(), revision.removeprefix("0x").upper())
        return self._known_names().get(key, f"AMD GPU {device}".strip())

    def _known_names(self) -> dict[tuple[str, str], str]:
        if self._names is None:
            self._names = dict(_entries(text(self._files.root / _NAMES) or ""))
        return self._names


def _watts(card: Path) -> float | None:
    return _first(card, ("hwmon/hwmon*/power1_average", "hwmon/hwmon*/power1_input"), 1e-6)


def _in_processor(card: Path) -> bool:
    """By the format of the driver's metrics table: 1 is a card, 2 and 3 are processors (kgd_pp_interface.h)."""
    try:
        with (card / "gpu_metrics").open("rb") as file:
            header = file.read(4)
    except OSError:
        return False
    return len(header) == 4 and header[2] > 1


def _entries(table: str) -> Iterable[tuple[tuple[str, str], str]]:
    for line in table.splitlines():
        parts = [part.strip() for part in line.split(",", 2)]
        if len(parts) == 3 and not line.startswith("#"):
            yield (parts[0].upper(), parts[1].upper()), parts[2]


def _first(card: Path, patterns: Iterable[str], unit: float) -> float | None:
    for pattern in patterns:
        for file in sorted(card.glob(pattern)):
            if (value := scaled(file, unit)) is not None:
                return value
    return None
