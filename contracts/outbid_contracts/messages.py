"""What nodes say to each other (MessagePack). Frozen; families are tagged by `type`; unknown fields are ignored.

The words are those of the contract net protocol (Smith 1980): call for proposals, bid, award.
Units are in the names: `_s` seconds, `_ms` milliseconds of Unix time, `_j` joules, `_w` watts, `_c` degrees Celsius,
`_usd` dollars, `_mib` MiB.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from outbid_contracts.codec import VERSION
from outbid_contracts.errors import ErrorBody
from outbid_contracts.ids import BidId, JobId, NodeId
from outbid_contracts.policy import Policy, Zone

Work = dict[str, float]
"""Units of work by kind, e.g. {"prompt_tokens": 40, "new_tokens": 256}; a capability names its own kinds."""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all messages. `v` is the sender's wire version."""

    v: int = VERSION


class Job(Message, frozen=True, kw_only=True):
    """One piece of work as its owner accepted it. `params` were validated against the capability's declaration.

    `reply` is the caller's inbox when it wants a stream: the winner sends chunks straight there, in `format`.
    """

    id: JobId
    owner: NodeId
    capability: str
    params: dict[str, Any]
    work: Work
    model: str | None = None
    policy: Policy = Policy()
    reply: str | None = None
    format: str = "application/json"
    created_ms: int = 0
    durable: bool = False
    """Its owner keeps it on disk and comes back for the result, so an attempt goes on while the owner is silent."""
    keep_s: float | None = None
    """How long its result and artifacts are to be kept, where the caller said so."""
    submitter: str = ""
    """The user who asked for it: the public key (U…) of the credentials; empty if not known."""
    prefix: bytes = b""
    """Of what it has its runner read, where that may be in a node's cache: a digest of 8 bytes for each beginning of it
    that ends with a piece, from the shortest, keyed with a secret of the mesh. Of many the first and the last 15.
    """


class CallForProposals(Message, frozen=True, kw_only=True):
    """Owner to able nodes: what is to be done, without its content."""

    job: JobId
    owner: NodeId
    capability: str
    work: Work
    model: str | None = None
    policy: Policy = Policy()
    durable: bool = False
    """Nobody waits for it in front of the owner's machine."""
    prefix: bytes = b""
    """As in `Job`."""
    dry: bool = False
    """Nothing will be awarded: somebody asks what would happen."""


class Bid(Message, frozen=True, kw_only=True, tag="bid"):
    """A node's promise for one job.

    `start_s` and `finish_s` (median) and `finish_p90_s` count from the moment of bidding; `energy_j` and `cost_usd` are
    for the whole job; `why` says in a sentence what the numbers rest on. After `expires_ms` the node may refuse the
    award.
    """

    bid_id: BidId
    node: NodeId
    job: JobId
    expires_ms: int
    start_s: float
    finish_s: float
    finish_p90_s: float
    energy_j: float
    cost_usd: float
    warm: bool
    zone: Zone
    model: str | None = None
    standing: bool = False
    """Computed by the owner from the node's standing offer, without asking."""
    later: bool = False
    """All its slots are taken: it could begin after `start_s`, and cannot be awarded before."""
    held: Work = {}
    """What of the job's work need not be done here, because the node's runner holds it from an earlier job."""
    why: str = ""


class Decline(Message, frozen=True, kw_only=True, tag="decline"):
    """Why a node does not bid. `code` is stable: busy, no_capability, no_model, blocked, draining, policy, late,
    error.
    """

    node: NodeId
    job: JobId
    code: str
    reason: str
    temporary: bool = False
    """True if waiting may help (busy), so the owner keeps the job instead of failing it."""


Proposal = Bid | Decline


class Checkpoint(Message, frozen=True, kw_only=True):
    """Where an attempt was after `step` of `steps`; `data` is the runner's own. Only the same capability and model goes
    on from it. `device` is the kind it was made on (cpu, cuda, mps): the same kind gives the same result.
    """

    step: int
    steps: int
    data: bytes
    model: str | None = None
    device: str = ""


MAX_CHECKPOINT_BYTES = 8 * 1024 * 1024
"""A larger one is not kept: the job then starts again where it loses its node."""


class SaveCheckpoint(Message, frozen=True, kw_only=True):
    """Winner to owner (`mesh.node.<id>.checkpoint`), no reply. Only that of the current attempt counts."""

    job: JobId
    attempt: int
    node: NodeId
    checkpoint: Checkpoint


class Award(Message, frozen=True, kw_only=True):
    """Owner to winner. `attempt` (it only grows) is the fencing token: only the newest attempt may settle.

    `chunks`: how many pieces of the stream the caller has already; `job.params` then ask for the rest (see
    `Capability.resume_params`), and the pieces of this attempt are numbered from there. `checkpoint`: go on from it.
    """

    job: Job
    attempt: int
    bid_id: BidId | None = None
    chunks: int = 0
    checkpoint: Checkpoint | None = None


class Accepted(Message, frozen=True, kw_only=True, tag="accepted"):
    """The winner holds the lease of this attempt. `free` is how many more such jobs it could start now."""

    node: NodeId
    free: int


class Declined(Message, frozen=True, kw_only=True, tag="declined"):
    """The winner cannot keep its bid after all; the owner takes the next-best."""

    node: NodeId
    code: str
    reason: str
    free: int = 0
    temporary: bool = False


AwardReply = Accepted | Declined


class Done(Message, frozen=True, kw_only=True, tag="done"):
    """`timings` are seconds measured by the runner; `chunks` is how many stream messages the caller was sent. `after`
    is the award's `chunks`: the result is that of the rest, to be joined with so many pieces.
    """

    result: dict[str, Any]
    timings: dict[str, float] = {}
    chunks: int = 0
    after: int = 0


class Failed(Message, frozen=True, kw_only=True, tag="failed"):
    """`retry` says whether another attempt could succeed; a bad request fails everywhere."""

    error: ErrorBody
    retry: bool = True
    traceback: str = ""
    chunks: int = 0


class Stopped(Message, frozen=True, kw_only=True, tag="stopped"):
    """The attempt was cancelled on the owner's word; or, with a `reason`, given back by a node that drains."""

    chunks: int = 0
    reason: str = ""


Outcome = Done | Failed | Stopped


class Settle(Message, frozen=True, kw_only=True):
    """Winner to owner: how the attempt ended. `energy_j` and `cost_usd` are what it took (metered, or by the declared
    watts; see `Spent.source` in the node).
    """

    job: JobId
    attempt: int
    node: NodeId
    outcome: Outcome
    free: int = 0
    energy_j: float | None = None
    cost_usd: float | None = None


class Settled(Message, frozen=True, kw_only=True):
    """Owner's acknowledgement. `accepted` is False for a stale attempt: its result is thrown away."""

    accepted: bool


class LeaseCheck(Message, frozen=True, kw_only=True):
    """Owner to a node running attempts for it: are these still alive? Being asked also tells the node its owner
    lives.
    """

    owner: NodeId
    attempts: tuple[tuple[JobId, int], ...]


class LeaseState(Message, frozen=True, kw_only=True):
    """The attempts among those asked about that the node does not run (any more)."""

    node: NodeId
    unknown: tuple[tuple[JobId, int], ...] = ()


class CancelAttempt(Message, frozen=True, kw_only=True):
    job: JobId
    attempt: int


class Offer(Message, frozen=True, kw_only=True):
    """A standing offer: what this node can do now, and the numbers its bids are made from.

    Estimated seconds = (0 if warm else load_s) + (fixed_s + sum(work[unit] * rates[unit])) * (1 + crowding * running),
    where running = slots - free: jobs that share one runner slow each other down.
    `spread` is p90 / p50 of past actual over estimated time. `watts` is the extra power while running. A unit in
    `typical` or `typical_from` counts at most that much: its asked amount is only an upper bound.
    """

    capability: str
    model: str | None
    warm: bool
    slots: int
    free: int
    load_s: float
    fixed_s: float
    rates: dict[str, float]
    crowding: float = 0.0
    spread: float = 1.5
    watts: float = 0.0
    usd_per_s: float = 0.0
    default: bool = False
    """Runs when the job names no model."""
    blocked: str = ""
    """Non-empty: cannot take work now, and why (e.g. short of memory)."""
    waiting_helps: bool = True
    """Whether what blocks it may pass by itself."""
    size_mib: float = 0.0
    """Of the model's files."""
    device: str = ""
    """Kind of device it runs on (cpu, cuda, mps), where the runner said so."""
    typical: dict[str, tuple[float, float]] = {}
    """Units of work whose asked amount is an upper bound (tokens of an answer): median and p90 of what was needed."""
    typical_from: dict[str, tuple[tuple[float, float, float], ...]] = {}
    """Of such units, where enough was seen to tell: from what asked amount on which median and p90 hold, growing.
    Who asks for more mostly needs more. Counts instead of `typical`.
    """
    frees_s: tuple[float, ...] = ()
    """When each taken slot is expected to be free again, in seconds from this message, the soonest first."""
    most_s: float | None = None
    """The longest job that it takes now (battery, quiet hours ahead); `most_why` says why."""
    most_why: str = ""
    rests_on: str = ""
    """What the numbers rest on, for people: a prior, a calibration, so many jobs."""
    pinned: bool = False
    """An administrator wants the model kept in memory."""


class Gpu(Message, frozen=True, kw_only=True):
    """One graphics processor. None means that its driver does not tell."""

    name: str
    vendor: Literal["nvidia", "amd", "apple"]
    memory_mib: int | None = None
    memory_free_mib: int | None = None
    unified: bool = False
    """It has no memory of its own but uses the machine's."""
    busy_percent: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


class Resources(Message, frozen=True, kw_only=True):
    """What the machine has. None means not known or not there."""

    cpu_count: int = 0
    cpu_percent: float | None = None
    """Of all cores, since the reading before."""
    memory_mib: int = 0
    memory_free_mib: int = 0
    storage_mib: int | None = None
    """Of the disk that holds the node's state folder."""
    storage_free_mib: int | None = None
    gpu: str | None = None
    """Name of the GPU with the most memory; `gpus` has all."""
    gpu_memory_mib: int | None = None
    gpus: tuple[Gpu, ...] = ()
    battery_percent: float | None = None
    on_battery: bool | None = None
    battery_left_s: float | None = None
    """Until empty at the present draw; None while plugged in."""
    battery_w: float | None = None
    """What flows out of the battery; into it, if negative."""
    temperatures_c: dict[str, float] = {}
    """The hottest sensor of each chip, by the chip's name."""
    power_w: float | None = None
    """What the machine draws now; `power_source` says how that is known."""
    power_source: str = ""


class HeldModel(Message, frozen=True, kw_only=True):
    """A model that was pulled to a node. `percent`: how much of it is there, while it is being pulled."""

    name: str
    source: str
    licence: str = ""
    size_mib: float = 0.0
    percent: float | None = None


class Presence(Message, frozen=True, kw_only=True):
    """A node's heartbeat, each `beat_s` and on change. `boot` differs after a restart; `seq` grows within one boot."""

    node: NodeId
    name: str
    version: str
    boot: str
    seq: int
    state: Literal["up", "draining", "leaving"]
    beat_s: float = 1.0
    """The next one comes within so many seconds."""
    host: str = ""
    zone: Zone = "lan"
    always_on: bool = False
    """It is meant to run day and night, so it owns durable jobs of the others and keeps copies of theirs."""
    keeps_artifacts: bool = False
    """It has the disk for artifacts of the others' jobs (a NAS)."""
    files: tuple[str, ...] = ()
    """Where other nodes fetch model files from it, as host:port."""
    pulled: tuple[HeldModel, ...] = ()
    """Models that were pulled to it, and those that are being pulled."""
    offers: tuple[Offer, ...] = ()
    missing: dict[str, str] = {}
    """Capabilities this node knows but cannot serve, and what would help."""
    box: str = ""
    """Public key of sealed boxes for this node (X25519), in hex."""
    revoked: str = ""
    """Digest of its list of revoked users."""
    trouble: tuple[str, ...] = ()
    """What is wrong with this node though it works, in sentences for people (e.g. the ledger's disk is full)."""
    held: str = ""
    """How many of its durable jobs wait for their keeper, in a sentence for people; empty if none do."""
    in_use: str = ""
    """What keeps it from working for others as usual (its person, heat, battery, quiet hours), in a sentence."""
    resources: Resources = Resources()
    running: int = 0
    waiting: int = 0
    macs: tuple[str, ...] = ()
    """Hardware addresses of its network interfaces, as aa:bb:cc:dd:ee:ff: where a magic packet wakes it."""
    guest: bool = False
    """It is here for a while only, and not to be remembered."""
    wants: tuple[tuple[str, str | None], ...] = ()
    """What its waiting jobs wait for: capability and model. Nodes let models that do not fit together take turns."""


class Capacity(Message, frozen=True, kw_only=True):
    """A node that was full can start `free` jobs of this capability and model again."""

    node: NodeId
    capability: str
    model: str | None
    free: int


JobState = Literal["waiting", "running", "done", "failed", "cancelled"]


class AttemptRecord(Message, frozen=True, kw_only=True):
    """One attempt in a job's history. `error` is empty while it runs and if it succeeded."""

    attempt: int
    node: NodeId
    started_ms: int
    ended_ms: int | None = None
    error: ErrorBody | None = None
    traceback: str = ""
    step: int = 0
    """Of the checkpoint it went on from."""
    promised_s: float | None = None
    promised_p90_s: float | None = None
    took_s: float | None = None
    energy_j: float | None = None
    cost_usd: float | None = None


class Considered(Message, frozen=True, kw_only=True):
    """One bid as the owner ranked it: `score` in seconds-equivalents (lower is better), `parts` what it is made of."""

    bid: Bid
    name: str
    score: float
    parts: dict[str, float] = {}
    stretch: float = 1.0
    """By how much the owner lengthened its times before ranking, because this node's promises ran short so far."""
    excluded: str = ""
    """Non-empty: why the policy ruled it out."""
    added_j: float | None = None
    """The joules that were ranked instead of the bid's, for a policy that counts what the job adds to a machine that
    works anyhow: by itself, or as one of those that were let go for that node together.
    """


class BidSheet(Message, frozen=True, kw_only=True):
    """What happened in one auction: every bid and every decline, who won and why."""

    attempt: int
    how: Literal["asked", "standing", "only"]
    opened_ms: int
    took_ms: float
    asked: int
    bids: tuple[Considered, ...] = ()
    declines: tuple[Decline, ...] = ()
    winner: NodeId | None = None
    why: str = ""
    waited_s: float = 0.0
    """How long the job had waited before, since it came or since its attempt before ended."""
    waited_for: str = ""
    """For what, in a sentence."""


class JobRecord(Message, frozen=True, kw_only=True):
    """What the owner knows about a job. Prompts and outputs are not in it."""

    id: JobId
    owner: NodeId
    capability: str
    model: str | None
    policy: Policy
    state: JobState
    created_ms: int
    ended_ms: int | None = None
    node: NodeId | None = None
    attempts: tuple[AttemptRecord, ...] = ()
    sheets: tuple[BidSheet, ...] = ()
    error: ErrorBody | None = None
    timings: dict[str, float] = {}
    promised_s: float | None = None
    took_s: float | None = None
    durable: bool = False
    submitter: str = ""
    priority: str = ""
    not_before_ms: int = 0
    after: tuple[JobId, ...] = ()
    reason: str = ""
    """Why it waits."""
