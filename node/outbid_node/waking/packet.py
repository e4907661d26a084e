"""The magic packet: six times ff, then the hardware address sixteen times, to everybody on the wire (AMD, 1995)."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence

from outbid_node.bus.interfaces import local_addresses

PORT = 9
"""Discard: nobody answers. The card looks for the pattern, whatever the port."""

EVERYBODY = "255.255.255.255"

TIMES = 3
"""UDP may be lost, and one more costs nothing."""

Way = tuple[str, str]
"""From this address of ours to that broadcast address."""


def magic(mac: str) -> bytes:
    return b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) * 16


def ways() -> list[Way]:
    """Over each IPv4 network that this machine is in: to its own broadcast address, and to the one for all."""
    found = []
    for local in local_addresses():
        network = local.network
        if network.version == 4 and not local.address.is_loopback and network.prefixlen < 31:
            found += [(str(local.address), str(network.broadcast_address)), (str(local.address), EVERYBODY)]
    return found


def send(macs: Iterable[str], over: Sequence[Way], port: int = PORT) -> list[str]:
    """The broadcast addresses it went to. Raises OSError if there was none."""
    reached: list[str] = []
    failure: OSError = OSError("this machine is in no network")
    packets = [magic(mac) for mac in macs]
    for source, target in over:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                udp.bind((source, 0))
                for packet in packets * TIMES:
                    udp.sendto(packet, (target, port))
            reached.append(target)
        except OSError as error:
            failure = error
    if not reached:
        raise failure
    return list(dict.fromkeys(reached))
