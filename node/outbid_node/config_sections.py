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

from outbid_contracts.policy import Goal, Zone
from outbid_node.courtesy.hours import FORM, parse
from outbid_node.power import tariff

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


def default_base_w() -> float:
    return _guess_w((1.5, 0.1), (8.0, 1.0))


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
    calibrate: Annotated[
        bool,
        Meta(
            description="measure the speed of models that never ran here by some tiny jobs, once, when the machine has"
            " been idle for a minute and is not on battery; `outbid calibrate` does it at any time"
        ),
    ] = True
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
    """What running costs. The watts are guesses by processor and number of cores until you measure at the plug. Any
    currency does, if all nodes of a mesh have the same. See `docs/power.md`.
    """

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
    base_w: Annotated[
        float,
        Meta(
            ge=0,
            description="watts of board, disks and fans, added to what the processor and the cards count themselves",
            extra={"default": "ARM: 1.5 + 0.1 per core; others: 8 + 1 per core"},
        ),
    ] = msgspec.field(default_factory=default_base_w)
    usd_per_kwh: Annotated[
        float, Meta(ge=0, description="price of electricity, US dollars per kWh; your own sunshine: 0")
    ] = 0.30
    tariff: Annotated[
        tuple[str, ...],
        Meta(
            description="prices per kWh at certain times, local time; the first that fits counts, else `usd_per_kwh`",
            extra={"allowed": f"a list of {tariff.HOW}"},
        ),
    ] = ()
    usd_per_h: Annotated[float, Meta(ge=0, description="rent of the machine, US dollars per hour it runs")] = 0.0

    def __post_init__(self) -> None:
        tariff.Tariff(self.usd_per_kwh, self.tariff)


class LogSection(_Section, frozen=True, kw_only=True):
    """What the daemon tells on standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="the least important lines to show")
    ] = "info"
    json: Annotated[bool, Meta(description="one JSON object per line instead of text")] = False
    trace: Annotated[
        str, Meta(description="file to append each step of each durable job to, for `outbid chaos`; empty: none")
    ] = ""


class PolicySection(_Section, frozen=True, kw_only=True):
    """What counts for jobs that do not say: their goal, and the exchange rates of goal custom, in seconds."""

    default: Annotated[Goal, Meta(description="the goal of jobs that name none")] = "balanced"
    p50: Annotated[float, Meta(ge=0, le=1e9, description="custom: what a second of the median time counts")] = 0.7
    p90: Annotated[float, Meta(ge=0, le=1e9, description="custom: what a second of the p90 time counts")] = 0.3
    per_j: Annotated[
        float, Meta(ge=0, le=1e9, description="custom: how many seconds longer a job may take to save a joule")
    ] = 0.001
    per_usd: Annotated[
        float, Meta(ge=0, le=1e9, description="custom: how many seconds longer a job may take to save a dollar")
    ] = 1000.0


class CourtesySection(_Section, frozen=True, kw_only=True):
    """Politeness towards the person whose machine this is. What somebody asks for at this very machine and waits for is
    held back by heat and charge only.
    """

    enabled: Annotated[
        bool, Meta(description="false: none of this holds, but for `outbid pause` and `outbid quiet`")
    ] = True
    when_in_use: Annotated[
        Literal["withdraw", "lower", "ignore"],
        Meta(description="what to do while somebody types or moves the mouse here; lower: promise longer times"),
    ] = "lower"
    when_playing: Annotated[
        Literal["withdraw", "lower", "ignore"],
        Meta(description="the same while a game runs, or something that is not ours is busy on the graphics processor"),
    ] = "withdraw"
    lower_by: Annotated[float, Meta(ge=1, le=100, description="by what `lower` multiplies the times of bids")] = 2.0
    back_after_s: Annotated[
        float, Meta(ge=0, description="seconds after the last sign of the person to bid as usual")
    ] = 300.0
    hand_over: Annotated[
        bool, Meta(description="give back what runs and can go on elsewhere when the node withdraws for its person")
    ] = True
    games: Annotated[
        tuple[str, ...],
        Meta(
            description="names of processes that are games, `*` for any letters",
            extra={"allowed": 'a list of names, e.g. ["cs2", "*.x86_64"]'},
        ),
    ] = (
        "gamescope*",
        "gameoverlayui*",
        "reaper",
        "lutris-wrapper",
        "wine-preloader",
        "wine64-preloader",
        "cs2*",
        "dota2*",
        "hl2_linux",
        "*.x86_64",
        "*-Win64-Shipping*",
    )
    gpu_busy_percent: Annotated[
        float, Meta(gt=0, le=101, description="load of a graphics processor by others' programs that counts; 101: none")
    ] = 30.0
    gpu_memory_percent: Annotated[
        float, Meta(gt=0, le=101, description="part of its memory held by one such program that counts; 101: none")
    ] = 50.0
    quiet_hours: Annotated[
        tuple[str, ...],
        Meta(
            description="local times without work for others; before them only jobs that end in time",
            extra={"allowed": f"a list of {FORM}"},
        ),
    ] = ()
    max_cpu_c: Annotated[
        Annotated[float, Meta(ge=30, le=150)] | Literal["auto"],
        Meta(
            description="degrees Celsius of the processor from which to take no work; auto: 10 below what the chip"
            " calls critical, none if it does not say"
        ),
    ] = "auto"
    max_gpu_c: Annotated[float, Meta(ge=30, le=150, description="the same for graphics processors")] = 87.0
    on_battery: Annotated[
        Literal["charge", "never", "ignore"],
        Meta(description="charge: only jobs that end before the charge is at the floor, with a margin; never: none"),
    ] = "charge"
    battery_floor_percent: Annotated[
        float, Meta(ge=0, le=100, description="charge that is left to the person, unless `on_battery` is ignore")
    ] = 30.0
    nice: Annotated[
        int,
        Meta(ge=0, le=19, description="niceness of runners where a person uses the machine, as far as can be seen"),
    ] = 10

    def __post_init__(self) -> None:
        for text in self.quiet_hours:
            try:
                parse(text)
            except ValueError as error:
                raise ValueError(f"quiet_hours: {error}") from None


class HistorySection(_Section, frozen=True, kw_only=True):
    """What the node remembers of its jobs, bids and itself, in one DuckDB file. Prompts and outputs are not in it."""

    enabled: Annotated[bool, Meta(description="false: remember nothing; bids then rest on less")] = True
    keep_days: Annotated[
        float, Meta(gt=0, le=3650, description="days that jobs, attempts, auctions, bids, runs and events are kept")
    ] = 90.0
    keep_samples_days: Annotated[
        float, Meta(gt=0, le=3650, description="days that samples are kept one by one; then as means of ten minutes")
    ] = 30.0
    max_mib: Annotated[
        int, Meta(ge=16, le=1_000_000, description="size of the file, MiB; beyond it the oldest rows go first")
    ] = 512
    sample_s: Annotated[
        float, Meta(ge=1, le=3600, description="seconds between two samples of the machine (load, memory, watts)")
    ] = 10.0


def weight_of(line: str) -> tuple[str, float]:
    """A submitter and its weight. Raises ValueError."""
    who, _, number = line.rpartition(" ")
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not who.strip() or not 0 < weight <= 1000:
        raise ValueError(f'{line!r} is not a name or public key and a weight above 0, e.g. "alice 2"')
    return who.strip(), weight


class QuotasSection(_Section, frozen=True, kw_only=True):
    """What one submitter may have of this node as the owner of its jobs. Whoever waits has a fair share anyway."""

    weights: Annotated[
        tuple[str, ...],
        Meta(
            description="how much larger or smaller than the others' a submitter's share is; names are those given to"
            " `outbid creds` on this machine before the node started, public keys always work",
            extra={"allowed": 'a list of "name weight", e.g. ["alice 2", "backup 0.2"]'},
        ),
    ] = ()
    max_waiting: Annotated[
        Annotated[int, Meta(ge=1)] | Literal["auto"],
        Meta(description="callers of one submitter that may wait; auto: 80 % of limits.max_waiting"),
    ] = "auto"
    max_running: Annotated[
        int, Meta(ge=0, description="jobs of one submitter that may run at once, on all nodes together; 0: any number")
    ] = 0
    jobs_per_hour: Annotated[
        int, Meta(ge=0, description="jobs that one submitter may hand in per hour; 0: any number")
    ] = 0

    def __post_init__(self) -> None:
        for line in self.weights:
            try:
                weight_of(line)
            except ValueError as error:
                raise ValueError(f"weights: {error}") from None
