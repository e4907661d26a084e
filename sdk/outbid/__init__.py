"""Outbid from inside your own program.

from outbid import Mesh

async with Mesh() as mesh:
    async for chunk in mesh.chat("Why is the sky blue?"):
        print(chunk.text, end="")

`outbid.sync` has the same without `await`; docs/sdk.md has more.
"""

from outbid.artifacts import Artifact
from outbid.chat import ChatStream, Reply
from outbid.history import Parquet, Table
from outbid.images import Drawing, Picture, Pictures, Step
from outbid.jobs import Job
from outbid.live import LinkBack, LinkLost, LiveEvent
from outbid.mapping import Mapped, MapProgress, Outcome
from outbid.mesh import Mesh
from outbid.operating import NodeHandle
from outbid.starting import NodeFailed
from outbid.timing import TimedOut
from outbid_contracts.durable import Submission
from outbid_contracts.errors import OutbidError
from outbid_contracts.policy import Policy, Weights
from outbid_contracts.what_if import WhatIfReply

__all__ = [
    "Artifact",
    "ChatStream",
    "Drawing",
    "Job",
    "LinkBack",
    "LinkLost",
    "LiveEvent",
    "MapProgress",
    "Mapped",
    "Mesh",
    "NodeFailed",
    "NodeHandle",
    "OutbidError",
    "Outcome",
    "Parquet",
    "Picture",
    "Pictures",
    "Policy",
    "Reply",
    "Step",
    "Submission",
    "Table",
    "TimedOut",
    "Weights",
    "WhatIfReply",
]
