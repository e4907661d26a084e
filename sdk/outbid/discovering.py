"""Finding nodes on the networks of this machine, by multicast DNS. zeroconf is loaded only where that is asked for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from outbid.connection import local_node
from outbid_contracts import announced
from outbid_contracts.announced import SERVICE, Announced
from outbid_contracts.errors import NoNode

if TYPE_CHECKING:
    from zeroconf.asyncio import AsyncZeroconf

WAIT_S = 2.0
"""Answers come within 0.2 s, and what was lost is asked for again after one second."""


async def discover(wait_s: float = WAIT_S) -> list[Announced]:
    """All nodes on the air, of any mesh, by mesh and name. Raises OSError if there is no network to listen on."""
    from zeroconf import DNSQuestionType
    from zeroconf.asyncio import AsyncServiceBrowser

    zeroconf = _open()
    names: set[str] = set()
    try:
        await zeroconf.zeroconf.async_wait_for_start()
        browser = AsyncServiceBrowser(
            zeroconf.zeroconf,
            SERVICE,
            handlers=[lambda zeroconf, service_type, name, state_change: names.add(name)],
            question_type=DNSQuestionType.QM,
        )
        await asyncio.sleep(wait_s)
        await browser.async_cancel()
        found = [_read(zeroconf, name) for name in names]
    finally:
        await zeroconf.async_close()
    return sorted((it for it in found if it is not None), key=lambda it: (it.mesh, it.name, it.node))


class Search:
    """`Mesh.discover`: the node of this machine; where there is none, what to do to have one."""

    def __init__(self, state: str | os.PathLike[str] | None, wait_s: float) -> None:
        self._state = state
        self._wait_s = wait_s

    async def arrive(self) -> str | os.PathLike[str] | None:
        """The state folder of the node. Raises NoNode naming the nodes that are on the air."""
        try:
            local_node(self._state)
        except NoNode as error:
            found: Sequence[Announced] = ()
            with suppress(OSError):
                found = await discover(self._wait_s)
            raise NoNode(way_in(found), found=[f"{one.name} ({one.addresses[0]})" for one in found]) from error
        return self._state

    async def leave(self) -> None:
        """Nothing was opened."""


def way_in(found: Sequence[Announced]) -> str:
    """What to do on a machine without a node. Nodes let in programs of their own machine only (docs/security.md)."""
    if not found:
        return (
            "no Outbid node runs here, and none announces itself on this machine's networks; start one with "
            "`outbid up`, or join a mesh that multicast does not reach with `outbid join CODE --peer HOST:PORT`"
        )
    first, names = found[0], ", ".join(sorted(f"{one.name} ({one.addresses[0]})" for one in found))
    return (
        f"no Outbid node runs here, but on the network there are {names}. A program enters a mesh through the node of "
        f"its own machine: run `outbid invite` on {first.name}, then `outbid join CODE` and `outbid up` here"
    )


def _open() -> AsyncZeroconf:
    from zeroconf import InterfaceChoice, IPVersion
    from zeroconf.asyncio import AsyncZeroconf

    with suppress(OSError):
        return AsyncZeroconf(interfaces=InterfaceChoice.All, ip_version=IPVersion.All)
    return AsyncZeroconf(interfaces=InterfaceChoice.All, ip_version=IPVersion.V4Only)  # IPv6 is switched off


def _read(zeroconf: AsyncZeroconf, name: str) -> Announced | None:
    """From what was heard; None for nonsense, and for a node that has said goodbye."""
    from zeroconf.asyncio import AsyncServiceInfo

    info = AsyncServiceInfo(SERVICE, name)
    if not info.load_from_cache(zeroconf.zeroconf):
        return None
    return announced.read(info.name, info.port, info.parsed_addresses(), info.decoded_properties)
