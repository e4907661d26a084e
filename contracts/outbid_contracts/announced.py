"""What a node announces by multicast DNS (DNS-SD, RFC 6763), as other nodes and `outbid discover` read it.

TXT entries besides those named here: see `outbid_node.resources.announce`. Nothing announced is to be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from outbid_contracts.codec import VERSION
from outbid_contracts.ids import NodeId, is_node_id

SERVICE = "_outbid._tcp.local."


class Announced(msgspec.Struct, frozen=True, kw_only=True):
    """One node on the air. `wire` is its version of the wire contract; `addresses` are as announced."""

    node: NodeId
    mesh: str
    name: str
    version: str
    wire: int
    addresses: tuple[str, ...]
    port: int
    txt: dict[str, str]


def full_name(node: NodeId) -> str:
    return f"{node}.{SERVICE}"


def properties(*, node: NodeId, mesh: str, name: str, version: str, txt: Mapping[str, str]) -> dict[str, str]:
    """All TXT entries of a node that speaks this wire version."""
    own = {"mesh": mesh, "node": node, "name": name[:64], "v": version, "wire": str(VERSION)}
    return {key: _clip(key, value) for key, value in (*txt.items(), *own.items())}


def read(
    full: str, port: int | None, addresses: Sequence[str], properties: Mapping[str, str | None]
) -> Announced | None:
    """None if the announcement is not one of ours: anything may be on the network."""
    txt = {key: value or "" for key, value in properties.items()}
    node = txt.pop("node", "")
    if not addresses or not is_node_id(node) or full != full_name(NodeId(node)) or not port:
        return None
    wire = txt.pop("wire", "")
    return Announced(
        node=NodeId(node),
        mesh=txt.pop("mesh", ""),
        name=txt.pop("name", node),
        version=txt.pop("v", ""),
        wire=int(wire) if wire.isdecimal() and len(wire) < 10 else 1,
        addresses=tuple(addresses),
        port=port,
        txt=txt,
    )


def remedy(name: str, wire: int) -> str:
    """What to do about a node of the same mesh that speaks another wire version."""
    older, newer = ("this machine", name) if wire > VERSION else (name, "this machine")
    low, high = sorted((wire, VERSION))
    return f"update Outbid on {older}: it speaks version {low} of the wire contract, {newer} version {high}"


def _clip(key: str, value: str) -> str:
    """One TXT entry is `key=value` in at most 255 bytes."""
    return value.encode()[: 254 - len(key.encode())].decode(errors="ignore")
