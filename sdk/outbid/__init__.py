"""Outbid from inside your own program.

from outbid import Mesh

async with Mesh() as mesh:
    async for chunk in mesh.chat("Why is the sky blue?"):
        print(chunk.text, end="")
"""

from outbid.artifacts import Artifact
from outbid.chat import ChatStream, Reply
from outbid.history import Parquet, Table
from outbid.images import Drawing, Picture, Pictures, Step
from outbid.jobs import Job
from outbid.mesh import Mesh
from outbid_contracts.durable import Submission
from outbid_contracts.errors import OutbidError
from outbid_contracts.policy import Policy, Weights
from outbid_contracts.what_if import WhatIfReply

__all__ = [
    "Artifact",
    "ChatStream",
    "Drawing",
    "Job",
    "Mesh",
    "OutbidError",
    "Parquet",
    "Picture",
    "Pictures",
    "Policy",
    "Reply",
    "Step",
    "Submission",
    "Table",
    "Weights",
    "WhatIfReply",
]
