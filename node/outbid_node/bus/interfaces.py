"""This machine's network addresses: which to use for discovery, and which of another machine's is nearest."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ALL = "all"
"""Instead of a list of interfaces: every one that is up, also those that come later."""
LOOPBACK = "127.0.0.1"
MOST = 32
"""Interfaces used; a machine full of containers has hundreds."""
MOST_ANNOUNCED = 8


@dataclass(frozen=True, slots=True)
class Local:
    """One address of this machine."""

    address: Address
    network: Network
    interface: str
    index: int


def local_addresses() -> list[Local]:
    """Of the interfaces that are up (with a cable in, where there is one). About 0.5 ms; more with many interfaces."""
    states = psutil.net_if_stats()
    found = []
    for name, entries in psutil.net_if_addrs().items():
        if name in states and states[name].isup:
            index = _index(name)
            for entry in entries:
                if entry.family in (socket.AF_INET, socket.AF_INET6):
                    with suppress(ValueError):
                        found.append(_local(name, index, entry.address, entry.netmask))
    return sorted(found, key=lambda local: (local.address.version, local.index, local.address))


def _local(name: str, index: int, address: str, netmask: str | None) -> Local:
    bare = ipaddress.ip_address(address.partition("%")[0])
    bits = bare.max_prefixlen if not netmask else _prefix(netmask)
    return Local(bare, ipaddress.ip_network((bare, bits), strict=False), name, index)


def _prefix(netmask: str) -> int:
    return int(ipaddress.ip_address(netmask.partition("%")[0])).bit_count()


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0  # it went away meanwhile


@dataclass(frozen=True, slots=True)
class Choice:
    """`v4` by address and `v6` by interface index are where to multicast; `announced` is what to tell others."""

    v4: tuple[str, ...]
    v6: tuple[int, ...]
    announced: tuple[str, ...]

    @property
    def where(self) -> list[str | int]:
        return [*self.v4, *self.v6]

    def __str__(self) -> str:
        return ", ".join(self.announced)


def choose(mine: Iterable[Local], wanted: Sequence[str] | str) -> Choice:
    """`wanted`: ALL, or addresses and interface names. Loopback is announced only where there is nothing else.

    Raises OSError if none of them is there. IPv6 link-local addresses serve multicast but are not announced: without
    their interface they mean nothing to others.
    """
    used = [local for local in mine if wanted == ALL or local.interface in wanted or str(local.address) in wanted]
    v4 = [str(local.address) for local in used if local.address.version == 4]
    v6 = {local.index: None for local in used if local.address.version == 6 and not local.address.is_loopback}
    outside = [str(local.address) for local in used if not local.address.is_loopback and not _link_local_v6(local)]
    announced = outside[:MOST_ANNOUNCED] or v4
    if not announced:
        raise OSError(f"this machine has none of the addresses or interfaces {', '.join(wanted) or '(none given)'}")
    return Choice(tuple(v4[:MOST]), tuple(index for index in v6 if index)[:MOST], tuple(announced))


def _link_local_v6(local: Local) -> bool:
    return local.address.version == 6 and local.address.is_link_local


def nearest_first(addresses: Iterable[str], mine: Sequence[Local]) -> tuple[str, ...]:
    """Another node's addresses, those first that this machine probably reaches directly.

    One that is also ours is either this same machine, or the like of a container bridge, which has the same number on
    every machine: it comes late. IPv6 link-local ones are left out.
    """
    parsed = []
    for text in addresses:
        with suppress(ValueError):
            parsed.append(ipaddress.ip_address(text))
    usable = [
        it for it in parsed if not (it.is_unspecified or it.is_multicast or (it.version == 6 and it.is_link_local))
    ]
    own = {local.address for local in mine}
    networks = [local.network for local in mine]

    def distance(address: Address) -> tuple[int, int]:
        direct = any(address in network for network in networks if network.version == address.version)
        rank = 3 if address.is_loopback else 2 if address in own else 0 if direct else 1
        return rank, address.version

    return tuple(map(str, sorted(usable, key=distance)))
