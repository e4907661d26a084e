"""The hardware addresses by which this machine can be woken."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

MOST = 8

VIRTUAL = re.compile(
    r"(lo|docker|br-|virbr|veth|tun|tap|wg|zt|tailscale|vmnet|vboxnet|bridge|utun|awdl|llw|anpi)", re.I
)
"""Begin the names of interfaces that are no hardware, where the system does not say it otherwise."""

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def own_macs(root: Path = Path("/")) -> tuple[str, ...]:
    """As aa:bb:cc:dd:ee:ff, without doubles: of real hardware where Linux tells which is (it has a `device`), else of
    whatever is not known to be virtual. A millisecond; more with hundreds of interfaces.
    """
    found = {name: mac for name, mac in _all() if not VIRTUAL.match(name)}
    real = {name: mac for name, mac in found.items() if (root / "sys/class/net" / name / "device").exists()}
    return tuple(sorted(set((real or found).values())))[:MOST]


def _all() -> list[tuple[str, str]]:
    addresses = [
        (name, as_mac(entry.address))
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == psutil.AF_LINK
    ]
    return [(name, mac) for name, mac in addresses if mac]


def as_mac(text: str) -> str:
    """In the one form that is used here; empty for what is no machine's hardware address."""
    mac = text.strip().lower().replace("-", ":")
    if not _MAC.fullmatch(mac) or mac == "00:00:00:00:00:00" or int(mac[:2], 16) & 1:
        return ""
    return mac
