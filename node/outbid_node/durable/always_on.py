"""Whether a machine is one of those that run day and night."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

BOARD = "proc/device-tree/model"

NAS = (
    "etc/synoinfo.conf",  # Synology DSM
    "etc/config/uLinux.conf",  # QNAP
    "etc/unraid-version",
    "etc/openmediavault/config.xml",
    "etc/truenas_version",
)
"""Files by which the usual NAS systems are known."""


def looks_like_nas(root: Path = Path("/"), markers: Sequence[str] = NAS) -> bool:
    return any((root / marker).exists() for marker in markers)


def looks_always_on(root: Path = Path("/"), markers: Sequence[str] = NAS) -> bool:
    """A Raspberry Pi, by the name of its board, or a NAS."""
    try:
        board = (root / BOARD).read_text(errors="replace")
    except OSError:
        board = ""
    return "raspberry pi" in board.lower() or looks_like_nas(root, markers)
