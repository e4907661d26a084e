"""What `outbid doctor` asks of a running node, and what it reports.

`mesh.admin.<node>.vitals` is cheap and tells what only the daemon knows; `mesh.admin.<node>.doctor` lets that machine
examine itself, which takes seconds.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Message

Level = Literal["ok", "note", "warning", "problem"]
"""note: good to know, nothing to do; warning: it works, but worse than it could; problem: something does not work."""

LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "problem")


class Finding(Message, frozen=True, kw_only=True):
    """The outcome of one check. `remedy` is a sentence a person can act on; empty where there is nothing to do."""

    check: str
    level: Level
    found: str
    remedy: str = ""


class Checkup(Message, frozen=True, kw_only=True):
    """One machine examined. `node` is empty where none has run yet, or where it did not answer."""

    name: str
    node: str = ""
    state: str = ""
    findings: tuple[Finding, ...] = ()
    took_s: float = 0.0

    @property
    def healthy(self) -> bool:
        return not any(finding.level == "problem" for finding in self.findings)


class DoctorReply(Message, frozen=True, kw_only=True):
    """`doctor`; also what `outbid doctor --json` prints, with one checkup for each machine asked."""

    healthy: bool
    checkups: tuple[Checkup, ...] = ()


class Seen(Message, frozen=True, kw_only=True):
    """Another node as the answering one sees it. `age_s`: since its last heartbeat."""

    node: NodeId
    name: str
    version: str
    age_s: float = 0.0
    always_on: bool = False


class OnAir(Message, frozen=True, kw_only=True):
    """A node of the same mesh that announces itself by multicast. `route` is where its router is, host:port."""

    node: NodeId
    name: str
    route: str


class Vitals(Message, frozen=True, kw_only=True):
    """`vitals`: what a daemon knows of itself.

    now_ms      its clock, Unix milliseconds
    drift_s     by how much its clock was set since it started, as against the machine's steady clock; None: not known
    blocked     how often its event loop was blocked (invariant 5), `worst_s` the longest time
    bus         the state of its servers and of its discovery
    config      what is in force there by section; secrets are left out
    missing     capabilities that it cannot serve, and what would help
    """

    node: NodeId
    name: str
    version: str
    pid: int
    now_ms: int
    up_s: float
    drift_s: float | None = None
    blocked: int = 0
    worst_s: float = 0.0
    mesh: str = ""
    open: bool = False
    always_on: bool = False
    trouble: tuple[str, ...] = ()
    held: str = ""
    missing: dict[str, str] = msgspec.field(default_factory=dict)
    sees: tuple[Seen, ...] = ()
    on_air: tuple[OnAir, ...] = ()
    bus: dict[str, Any] = msgspec.field(default_factory=dict)
    config: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
