"""Every subject of the bus: who publishes, who listens, which message. Literal made by each function stands above it.

| subject | direction | message |
|---|---|---|
| `mesh.<capability>` | face -> any node (queue group) | request, see `requests.py`; reply or stream |
| `mesh.jobs.<verb>`, `mesh.nodes.list`, `mesh.models.list` | face -> any node (queue group) | see `requests.py` |
| `mesh.jobs.what-if` | face -> any node (queue group) | WhatIfRequest; reply WhatIfReply |
| `mesh.node.<id>.cfp` | owner -> each node it asks | CallForProposals; reply Bid or Decline |
| `mesh.node.<id>.award` | owner -> winner | Award; reply Accepted or Declined |
| `mesh.node.<id>.settle` | winner -> owner | Settle; reply Settled |
| `mesh.node.<id>.lease` | owner -> winner | LeaseCheck; reply LeaseState |
| `mesh.node.<id>.cancel` | owner -> winner | CancelAttempt; no reply |
| `mesh.node.<id>.jobs` | node -> node | JobQuery; reply JobList |
| `mesh.node.<id>.submit`, `…result`, `…watch`, `…retry` | node -> owner | see `durable.py` |
| `mesh.node.<id>.wanted` | always-on node -> node that passed a submit on | SubmitRequest; reply SubmitReply |
| `mesh.node.<id>.compare`, `…mirror` | owner -> its keeper | see `keeping.py` |
| `mesh.node.<id>.released` | keeper -> owner | see `keeping.py` |
| `mesh.history.<verb>` | face -> any node (queue group) | query, report, tables, see `history.py` |
| `mesh.node.<id>.query`, `…usage` | node -> node | PeerQuery, UsageQuery, see `history.py` |
| `mesh.artifacts.find`, `mesh.artifacts.read` | face -> any node (queue group) | see `artifacts.py` |
| `mesh.node.<id>.artifact` | winner -> node that keeps the artifact | PutArtifact; reply PutReply |
| `mesh.node.<id>.artifacts`, `…read` | node -> node | FindArtifacts, ReadArtifact, see `artifacts.py` |
| `mesh.node.<id>.checkpoint` | winner -> owner | SaveCheckpoint; no reply |
| `mesh.node.<id>.manifest`, `…piece` | node -> node | model files, see `files.py` |
| `mesh.node.<id>.rekey`, `mesh.node.<id>.revoked` | node -> node | NewKey; Revocations, see `admin.py` |
| `mesh.admin.<id>.<verb>` | administrator -> one node | see `admin.py` |
| `mesh.presence.<id>` | node -> all | Presence, every `beat_s` and when it changes; who did not know it replies |
| `mesh.hello` | lone node -> all | its id or nothing; each other node sends its Presence: as a reply, else to all |
| `mesh.suspect` | node -> all | id of a node that does not answer, as text; each asks it before it believes that |
| `mesh.ended.<server>` | nats-server -> all | it stops in order, JSON as NATS writes it (imported from `$SYS`) |
| `mesh.capacity.<id>` | node -> all | Capacity: a full node has a free slot again |
| `mesh.watch` | face -> all nodes | Watch, JSON or MessagePack, see `live.py`; no reply |
| `mesh.auction.<owner>` | owner -> faces that watch | AuctionHeld, MessagePack |
| `mesh.log.<id>` | node -> administrators that watch | LogLine, MessagePack |
| `mesh.job.<id>.event` | owner and winner -> whoever watches | JobEvent without chunks or result, JSON |
| `mesh.events.<owner>.<job>` | owner and winner -> stream `EVENTS_<owner>` | JobEvent of a durable job, JSON |
"""

from __future__ import annotations

from outbid_contracts.ids import JobId, NodeId

OWNERS = "owners"
"""Queue group of the daemons' request endpoints; NATS prefers the member on the caller's own server."""

RESERVED = frozenset(
    {
        "admin",
        "artifacts",
        "auction",
        "ended",
        "log",
        "node",
        "nodes",
        "presence",
        "hello",
        "history",
        "suspect",
        "capacity",
        "job",
        "jobs",
        "models",
        "event",
        "events",
        "watch",
    }
)
"""First words a capability's name may not have, because the subject `mesh.<word>` is taken."""


# mesh.llm.chat
def capability(name: str) -> str:
    return f"mesh.{name}"


# mesh.jobs.list
def jobs(verb: str) -> str:
    return f"mesh.jobs.{verb}"


# mesh.artifacts.find
def artifacts(verb: str) -> str:
    return f"mesh.artifacts.{verb}"


# mesh.history.query
def history(verb: str) -> str:
    return f"mesh.history.{verb}"


NODES = "mesh.nodes.list"
MODELS = "mesh.models.list"
HELLO = "mesh.hello"
SUSPECT = "mesh.suspect"


# mesh.ended.NAFRRORCQ27VHY2R6XZYMDYUQMVV55QUQHM6IBGZNMBQ3THVMXC3C5BX
def ended(server: str) -> str:
    return f"mesh.ended.{server}"


ENDED_ALL = "mesh.ended.*"


# mesh.node.7k2f9qzt.award
def node(id: NodeId, verb: str) -> str:
    return f"mesh.node.{id}.{verb}"


# mesh.admin.7k2f9qzt.invite
def admin(id: NodeId, verb: str) -> str:
    return f"mesh.admin.{id}.{verb}"


# mesh.presence.7k2f9qzt
def presence(id: NodeId) -> str:
    return f"mesh.presence.{id}"


PRESENCE_ALL = "mesh.presence.*"


# mesh.capacity.7k2f9qzt
def capacity(id: NodeId) -> str:
    return f"mesh.capacity.{id}"


CAPACITY_ALL = "mesh.capacity.*"


WATCH = "mesh.watch"


# mesh.auction.7k2f9qzt
def auction(owner: NodeId) -> str:
    return f"mesh.auction.{owner}"


AUCTION_ALL = "mesh.auction.*"


# mesh.log.7k2f9qzt
def log(id: NodeId) -> str:
    return f"mesh.log.{id}"


LOG_ALL = "mesh.log.*"
JOB_EVENT_ALL = "mesh.job.*.event"


# mesh.job.01k3m2v7x0.event
def job_event(id: JobId) -> str:
    return f"mesh.job.{id}.event"


# mesh.events.7k2f9qzt.01k3m2v7x0
def events(owner: NodeId, id: JobId) -> str:
    return f"mesh.events.{owner}.{id}"
