"""What an administrator asks of one node: `mesh.admin.<node>.<verb>`. Only the role admin may; answers mirror the
format.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.live import LogLevel, LogLine
from outbid_contracts.messages import Message


class InviteRequest(Message, frozen=True, kw_only=True):
    """`invite`. A guest offers only `capabilities` (all if empty), runs at most `slots` jobs, for `guest_s` seconds."""

    valid_s: Annotated[float, Meta(gt=0, le=7 * 86_400)] = 600.0
    uses: Annotated[int, Meta(ge=1, le=1000)] = 1
    guest: bool = False
    capabilities: tuple[str, ...] = ()
    slots: Annotated[int, Meta(ge=1)] | None = None
    guest_s: Annotated[float, Meta(gt=0)] | None = None


class InviteReply(Message, frozen=True, kw_only=True):
    """`restarting`: the node was closed to the network and opens itself now; ask again in a moment, there is no code
    yet.
    """

    restarting: bool = False
    code: str = ""
    valid_s: float = 0.0
    uses: int = 0
    port: int = 0
    addresses: tuple[str, ...] = ()


class InvitationsReply(Message, frozen=True, kw_only=True):
    """`invitations`: the public part of each open code, and who came in by it."""

    open: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()


class RekeyRequest(Message, frozen=True, kw_only=True):
    """`rekey`: give the mesh a new key. Nodes in `without` (ids or names), and those not there now, are out."""

    without: tuple[str, ...] = ()


class RekeyReply(Message, frozen=True, kw_only=True):
    """Names: who follows, who was left out on purpose, who did not answer (and must join again)."""

    followed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()


class NewKey(Message, frozen=True, kw_only=True):
    """Node to node (`mesh.node.<id>.rekey`): the new mesh key in a box that only that node opens; switch at `at_s`
    (Unix).
    """

    box: bytes
    at_s: float


class RevokeRequest(Message, frozen=True, kw_only=True):
    """`revoke`: the credentials made under this name until now are refused everywhere."""

    name: Annotated[str, Meta(min_length=1, max_length=63)]


class RevokeReply(Message, frozen=True, kw_only=True):
    """How many other nodes know already; those not here now learn it when they return."""

    name: str
    told: int
    silent: int


class Revocations(Message, frozen=True, kw_only=True):
    """Node to node (`mesh.node.<id>.revoked`): users by public key, with the Unix time up to which they are refused."""

    users: dict[str, int] = msgspec.field(default_factory=dict)


class DrainRequest(Message, frozen=True, kw_only=True):
    """`drain`: take no new work and hand over what can go on elsewhere; `undo` takes work again. It lasts until then
    or until the daemon restarts.
    """

    undo: bool = False


class DrainReply(Message, frozen=True, kw_only=True):
    """`runs_on`: jobs that this node finishes itself, because nobody could go on with them. `handed_over`: those that
    others take on from here. Empty lists: nothing ran.
    """

    node: NodeId
    draining: bool
    runs_on: tuple[JobId, ...] = ()
    handed_over: tuple[JobId, ...] = ()


class PauseRequest(Message, frozen=True, kw_only=True):
    """`pause`: work for nobody else, for `for_s` seconds or until `resume`; a restart of the daemon does not end it."""

    for_s: Annotated[float, Meta(gt=0, le=366 * 86_400)] | None = None


class PauseReply(Message, frozen=True, kw_only=True):
    """Of `pause` and `resume`. `until_ms` (Unix time) is None where it has no end. `handed_over`: jobs that others take
    on from here; `runs_on`: those that this node still finishes.
    """

    node: NodeId
    paused: bool
    until_ms: int | None = None
    runs_on: tuple[JobId, ...] = ()
    handed_over: tuple[JobId, ...] = ()


class CalibrateRequest(Message, frozen=True, kw_only=True):
    """Measure the speed of a capability with a model, now: the default model, if none is named; of all capabilities
    that this node can measure, if none is named.
    """

    capability: str | None = None
    model: str | None = None


class Calibrated(Message, frozen=True, kw_only=True):
    """What was believed before, on what that rested, and what the measurement showed: seconds to load (`load_s`), fixed
    (`fixed_s`) and for a unit of work (by its name and `_s`). With an `error` there was none.
    """

    capability: str
    model: str | None = None
    rests_on: str = ""
    believed: dict[str, float] = msgspec.field(default_factory=dict)
    shown: dict[str, float] = msgspec.field(default_factory=dict)
    error: str = ""


class CalibrateReply(Message, frozen=True, kw_only=True):
    node: NodeId
    found: tuple[Calibrated, ...] = ()


class Ok(Message, frozen=True, kw_only=True):
    node: NodeId


class ExportRequest(Message, frozen=True, kw_only=True):
    """`export`: write the node's history as Parquet files; all tables, if none is named."""

    tables: tuple[str, ...] = ()


class ExportReply(Message, frozen=True, kw_only=True):
    """`folder`, on that node, holds `TABLE.parquet` for each of `rows`, which says how many rows it has. Whoever asked
    takes the files away; the next export deletes what is left.
    """

    node: NodeId
    folder: str
    rows: dict[str, int]


class PinRequest(Message, frozen=True, kw_only=True):
    """`pin`: keep this model in memory, loaded now if it is not, until `undo`; a restart of the daemon does not end it.
    It is never evicted for another, and counts against the node's memory budget.
    """

    model: str
    capability: str | None = None
    undo: bool = False


class PinReply(Message, frozen=True, kw_only=True):
    """`loading`: it is not in memory yet."""

    node: NodeId
    model: str
    capability: str
    pinned: bool
    loading: bool = False


class EvictRequest(Message, frozen=True, kw_only=True):
    """`evict`: take this model out of memory once nothing runs on it; it is loaded again when a job wants it."""

    model: str
    capability: str | None = None


class EvictReply(Message, frozen=True, kw_only=True):
    """`busy`: jobs run on it; it goes when the last of them is done. `was_warm` false: there was nothing to do."""

    node: NodeId
    model: str
    capability: str
    was_warm: bool
    busy: bool = False


class QuietRequest(Message, frozen=True, kw_only=True):
    """`quiet`: the node's quiet hours from now on, over restarts, instead of those of its configuration; `undo` goes
    back to these. `hours` as in `[courtesy] quiet_hours`; empty: none. Without hours and undo it only tells.
    """

    hours: tuple[str, ...] | None = None
    undo: bool = False


class QuietReply(Message, frozen=True, kw_only=True):
    """`configured`: what the configuration says, where that is not in force."""

    node: NodeId
    hours: tuple[str, ...]
    configured: tuple[str, ...] | None = None


class WakeRequest(Message, frozen=True, kw_only=True):
    """`wake`: send the magic packet for a machine that is away, by id or name, from this node's networks."""

    node: str


class WakeReply(Message, frozen=True, kw_only=True):
    """From which node, to which hardware addresses, through which broadcast addresses it was sent. Nobody can tell
    whether it was heard; a machine that wakes shows up by itself.
    """

    node: NodeId
    name: str
    sent_by: NodeId
    macs: tuple[str, ...]
    through: tuple[str, ...]


class Sleeper(Message, frozen=True, kw_only=True):
    """A machine that was in the mesh and is away. `wakeable`: its hardware address is known."""

    node: NodeId
    name: str
    last_seen_ms: int
    wakeable: bool = False


class LogsRequest(Message, frozen=True, kw_only=True):
    """`logs`: the last lines of the node's log, from `level` up."""

    level: LogLevel = "info"
    limit: Annotated[int, Meta(ge=1, le=1000)] = 200


class LogsReply(Message, frozen=True, kw_only=True):
    """The oldest first."""

    node: NodeId
    lines: tuple[LogLine, ...] = ()
