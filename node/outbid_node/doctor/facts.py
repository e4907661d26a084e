"""What a checkup knows about a machine. Everything is as it was found; nothing here says whether it is good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from outbid_contracts.capability import ModelFile
from outbid_contracts.doctor import Vitals
from outbid_contracts.ids import NodeId
from outbid_node.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """nats-server. `error` is why it cannot be used, with what to do, separated by a semicolon."""

    path: str = ""
    version: tuple[int, int, int] = (0, 0, 0)
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """`installed` are the packages that Outbid needs, `lacking` those of them that are not there."""

    outbid: str
    python: str
    installed: Mapping[str, str]
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """The state folder. `loose`: what others may read though it holds secrets; `foreign`: what belongs to another user
    than the folder does. `owner` and `user` (who asks) are user names.
    """

    path: Path
    exists: bool = True
    loose: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    owner: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Writes:
    """Synced writes of some hundred bytes each, seconds; `refused` is why there could be none."""

    times_s: tuple[float, ...] = ()
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Space of the disk under `path`; `purpose` is what is kept there."""

    path: str
    purpose: Literal["state", "models"]
    free_mib: float
    total_mib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The configuration as the next start would read it. `config` is None where `error` is not empty."""

    config: Config | None = None
    file: str = ""
    error: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """Mesh key and membership. `error` is why one of them cannot be used; `loose` is its file if others may read it."""

    mesh: str
    exists: bool = False
    loose: str = ""
    error: str = ""
    member: bool = False
    open: bool = False
    peers: tuple[str, ...] = ()


Life = Literal["running", "suspended", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The daemon or one of its servers, by the process id it left in the state folder.

    `announced`: a file says that it runs. For the daemon `locked` says whether any process holds the state folder.
    """

    pid: int = 0
    life: Life = "none"
    announced: bool = False
    locked: bool = False


Greeting = Literal["ours", "other", "silent", "closed"]
"""Of a port: our server's greeting, something else's, none within the time, nobody listens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The ledger: its port and what it said there, and the end of its log if that is an error."""

    port: int
    greeting: Greeting
    program: Program
    refusal: str = ""
    last_error: str = ""
    synced: bool | None = None
    """Whether its configuration file says that each write is synced; None where there is no file or no JetStream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """What JetStream says of itself. `error` is set where it does not answer or is off."""

    domain: str = ""
    used_mib: float = 0.0
    limit_mib: float = 0.0
    streams: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """Another node of the mesh, asked by ours. `offset_s`: how far its clock is ahead of ours, give or take `round_s`;
    `vitals` None: it did not answer (`error` says how).
    """

    node: NodeId
    name: str
    version: str
    vitals: Vitals | None = None
    error: str = ""
    offset_s: float = 0.0
    round_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A port this node wants. `fixed`: it was named in the configuration, so no other will do."""

    purpose: Literal["ledger", "routes"]
    number: int
    fixed: bool
    holder: str = ""
    """Who has it; empty: it is free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """`synced`: whether the system's clock is being set by a time server, None: it does not tell."""

    year: int
    synced: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """Multicast on one address of this machine: whether its own question came back, else `error`."""

    interface: str
    address: str
    heard: bool
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """A route address that was configured or learned, and why it cannot be connected to (empty: it can)."""

    address: str
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Open files: how many a process may have (None: no limit is known), and how many the daemon has."""

    most: int | None
    used: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """None: this machine has no battery, or does not tell."""

    on_battery: bool | None = None
    percent: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """The processor's own energy counters: whether it has any, and whether this user may read them."""

    there: bool = False
    readable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    total_mib: float
    free_mib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One capability here. `missing` is why it cannot run, with what to do, separated by a semicolon; `broken` are
    models that were named but cannot be used, by path.
    """

    name: str
    missing: str = ""
    models: tuple[ModelFile, ...] = ()
    broken: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One machine. A part is None where it could not be looked at; `unknown` then says why, by the part's name.

    `config` is what is in force: that of the running node if it answers, else what the next start would read.
    """

    state: Path
    name: str
    node: str
    binary: Binary | None
    software: Software | None
    folder: Folder | None
    writes: Writes | None
    disks: tuple[Disk, ...] | None
    settings: Settings | None
    config: Config
    key: Key | None
    daemon: Program | None
    ledger: Server | None
    store: Store | None
    vitals: Vitals | None
    others: tuple[Other, ...] | None
    ports: tuple[Port, ...] | None
    clock: Clock | None
    echoes: tuple[Echo, ...] | None
    reaches: tuple[Reach, ...] | None
    limits: Limits | None
    power: Power | None
    counters: Counters | None
    memory: Memory | None
    work: tuple[Work, ...] | None
    unknown: Mapping[str, str]
