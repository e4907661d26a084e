"""`outbid discover`: which nodes announce themselves on the networks of this machine. It needs no node here."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from outbid.cli import output
from outbid.cli.running import JSON, STATE, perform
from outbid.connection import local_node
from outbid_contracts import announced
from outbid_contracts.announced import SERVICE, Announced
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import NodeId

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


def this_node(state: str | os.PathLike[str] | None) -> NodeId | None:
    """The node with that state folder, if one runs here."""
    with suppress(OutbidError):
        return local_node(state).node
    return None


@click.command("discover")
@click.option("--seconds", type=float, default=2.0, show_default=True, help="How long to listen.")
@STATE
@JSON
def discover_command(seconds: float, state: str | None, as_json: bool) -> None:
    """The nodes that announce themselves on this machine's networks, of any mesh. Needs no node here."""

    async def show() -> None:
        found = await discover(seconds)
        output.on_air(found, this_node(state), as_json=as_json)

    perform(show())
