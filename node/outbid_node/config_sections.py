"""The sections of a node's configuration: each key with its type, its default and what it means.

`docs/reference/configuration.md` is made from these.
"""

from __future__ import annotations

import getpass
import os
import platform
import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from outbid_contracts.policy import Zone

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
_PEER = r"^(\[[0-9A-Fa-f:.]+\]|[^\s:,\[\]]+):[1-9][0-9]{0,4}$"
_NAME_RULE = "1 to 63 letters, digits, dots, dashes or underscores, the first a letter or digit"

Port = Annotated[int, Meta(ge=1, le=65535)]
AutoPort = Port | Literal["auto"]


def _plain_name(text: str, fallback: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:63] or fallback


def default_name() -> str:
    """The host's name up to its first dot."""
    return _plain_name(platform.node().partition(".")[0], "node")


def default_mesh() -> str:
    """The operating system's user name, so that the nodes of two users of one machine do not meet."""
    try:
        return _plain_name(getpass.getuser(), "home")
    except (KeyError, OSError):  # a container may run under a number without a name
        return f"user-{os.getuid()}" if hasattr(os, "getuid") else "home"


def _guess_w(arm: tuple[float, float], other: tuple[float, float]) -> float:
    """Watts as base + per-core: from a Raspberry Pi 5 (3 W idle, 11 W busy) and desktops (16 threads: 34 W, 127 W)."""
    base, per_core = arm if platform.machine().lower() in ("arm64", "aarch64", "armv7l") else other
    return base + per_core * (os.cpu_count() or 1)


def default_idle_w() -> float:
    return _guess_w((2.5, 0.25), (10.0, 1.5))


def default_busy_w() -> float:
    return _guess_w((3.0, 2.0), (15.0, 7.0))


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class NodeSection(_Section, frozen=True, kw_only=True):
    """This machine as the others see it."""

    name: Annotated[
        str,
        Meta(
            pattern=_NAME,
            description="name shown to people; unique in the mesh is kind, not needed",
            extra={"allowed": _NAME_RULE, "default": "the host's name"},
        ),
    ] = msgspec.field(default_factory=default_name)
    zone: Annotated[Zone, Meta(description="how far away this node is for the others' policies")] = "lan"
    always_on: Annotated[
        bool | Literal["auto"],
        Meta(
            description="runs day and night, so durable jobs submitted on the other machines live here; auto: true on a"
            " Raspberry Pi and on the usual NAS systems"
        ),
    ] = "auto"


class MeshSection(_Section, frozen=True, kw_only=True):
    """Which other nodes this one joins."""

    name: Annotated[
        str,
        Meta(
            pattern=_NAME,
            description="nodes with the same mesh name find each other",
            extra={"allowed": _NAME_RULE, "default": "the name of the user who runs the node"},
        ),
    ] = msgspec.field(default_factory=default_mesh)
    discovery: Annotated[bool, Meta(description="look for nodes by multicast DNS (zeroconf)")] = True
    peers: Annotated[
        tuple[Annotated[str, Meta(pattern=_PEER)], ...],
        Meta(
            description="route addresses of nodes that multicast does not reach",
            extra={"allowed": 'a list of "host:port", port 1 to 65535, e.g. ["192.168.1.7:7422", "[fd00::7]:7422"]'},
        ),
    ] = ()

    def __post_init__(self) -> None:
        for peer in self.peers:
            if int(peer.rpartition(":")[2]) > 65535:
                raise ValueError(f"peers: {peer!r} has a port above 65535")


class BusSection(_Section, frozen=True, kw_only=True):
    """The NATS servers of this node."""

    port: Annotated[
        AutoPort, Meta(description="port of the ledger, which local programs connect to (loopback); auto: any free")
    ] = "auto"
    route_port: Annotated[AutoPort, Meta(description="port where other nodes' routers connect; auto: any free")] = (
        "auto"
    )
    nats_context: Annotated[
        bool,
        Meta(
            description="let `nats --context outbid` reach this node, if it has the usual state folder: write"
            " ~/.config/nats/context/outbid.json"
        ),
    ] = True


class LimitsSection(_Section, frozen=True, kw_only=True):
    """How much this node takes on."""

    cpu_share: Annotated[
        float, Meta(gt=0, le=1, description="part of its time a runner may work; below 1 it pauses in between")
    ] = 1.0
    memory_mib: Annotated[
        Annotated[int, Meta(ge=1)] | Literal["auto"],
        Meta(description="MiB of memory all loaded models together may take; auto: 70 % of the machine's"),
    ] = "auto"
    gpu_memory_mib: Annotated[
        Annotated[int, Meta(ge=0)] | Literal["auto"],
        Meta(
            description="MiB of graphics memory all loaded models together may take; auto: 90 % of the largest card's."
            " What does not fit there counts as `memory_mib`"
        ),
    ] = "auto"
    keep_warm_s: Annotated[float, Meta(ge=0, description="seconds an idle model stays loaded")] = 600.0
    max_waiting: Annotated[int, Meta(ge=0, description="jobs that may wait at this node for a free slot")] = 1000
    max_attempts: Annotated[int, Meta(ge=1, le=100, description="attempts at a job before it has failed")] = 3
    grace_s: Annotated[float, Meta(ge=0, description="seconds that running jobs get to finish when the node stops")] = (
        5.0
    )

    def memory_budget_mib(self, total_mib: int) -> int:
        """`memory_mib` on a machine with `total_mib` of memory."""
        return max(1, int(total_mib * 0.7)) if self.memory_mib == "auto" else self.memory_mib

    def gpu_memory_budget_mib(self, card_mib: int) -> int:
        """`gpu_memory_mib` where the largest card has `card_mib` of its own."""
        return int(card_mib * 0.9) if self.gpu_memory_mib == "auto" else min(self.gpu_memory_mib, card_mib)


class DurableSection(_Section, frozen=True, kw_only=True):
    """Jobs that are kept on disk until they are done."""

    adopt_after_s: Annotated[
        float,
        Meta(
            ge=2,
            description="seconds a machine may be away before the always-on node with copies of its jobs takes over",
        ),
    ] = 600.0


class ArtifactsSection(_Section, frozen=True, kw_only=True):
    """The files that jobs made, as far as this node holds them."""

    keep_days: Annotated[
        float, Meta(ge=0, description="days they are kept, where a durable job's `keep_s` does not say otherwise")
    ] = 7.0
    max_mib: Annotated[
        Annotated[int, Meta(ge=1)] | Literal["auto"],
        Meta(
            description="MiB they may take together, the oldest go first; auto: 10 % of the disk and at most 20 GiB, or"
            " half of the disk where `for_others` is true"
        ),
    ] = "auto"
    max_artifact_mib: Annotated[int, Meta(ge=1, description="MiB that one may have")] = 512
    for_others: Annotated[
        bool | Literal["auto"],
        Meta(
            description="hold those of the other machines' jobs too; auto: true on the usual NAS systems and false"
            " elsewhere"
        ),
    ] = "auto"


class ModelsSection(_Section, frozen=True, kw_only=True):
    """Models that `outbid pull` fetches to this node."""

    folder: Annotated[
        str,
        Meta(
            description="where they are kept, a disk with room; empty: among the user's data, or in the state folder if"
            " that is not the usual one"
        ),
    ] = ""
    from_mesh: Annotated[bool, Meta(description="ask the other nodes of the mesh for a model before the internet")] = (
        True
    )
    serve: Annotated[bool, Meta(description="give the models of this node to the others")] = True
    port: Annotated[AutoPort, Meta(description="port where other nodes fetch them; auto: any free")] = "auto"


class PowerSection(_Section, frozen=True, kw_only=True):
    """What running costs. The watts are guesses by processor and number of cores until you measure at the plug."""

    idle_w: Annotated[
        float,
        Meta(
            ge=0,
            description="watts the machine draws when idle",
            extra={"default": "ARM: 2.5 + 0.25 per core; others: 10 + 1.5 per core"},
        ),
    ] = msgspec.field(default_factory=default_idle_w)
    busy_w: Annotated[
        float,
        Meta(
            ge=0,
            description="watts the machine draws when it computes on all cores",
            extra={"default": "ARM: 3 + 2 per core; others: 15 + 7 per core"},
        ),
    ] = msgspec.field(default_factory=default_busy_w)
    usd_per_kwh: Annotated[float, Meta(ge=0, description="price of electricity, US dollars per kWh")] = 0.30
    usd_per_h: Annotated[float, Meta(ge=0, description="rent of the machine, US dollars per hour it runs")] = 0.0


class LogSection(_Section, frozen=True, kw_only=True):
    """What the daemon tells on standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="the least important lines to show")
    ] = "info"
    json: Annotated[bool, Meta(description="one JSON object per line instead of text")] = False
    trace: Annotated[
        str, Meta(description="file to append each step of each durable job to, for `outbid chaos`; empty: none")
    ] = ""
