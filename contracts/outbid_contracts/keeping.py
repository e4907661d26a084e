"""What an owner of durable jobs and its keeper say to each other: the keeper has copies of the owner's jobs, and takes
them over when the owner stays away.

A job that the keeper may have a copy of ends where the keeper says: its copy is replaced either by the end the owner
sends, before the owner records it, or by the keeper's own decision to take the job over. Every message is answered
when what follows from it is on the keeper's disk. An owner has one message under way at a time.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import Message

COMPARE_AT_ONCE = 2000
"""Jobs in one Compare."""

MIRROR_AT_ONCE = 400
"""Copies in one Mirror, and as many ids to forget: one atomic batch of JetStream takes them."""

MIRROR_BYTES = 4 * 2**20
"""Copies in one Mirror; a single one may be larger."""

Status = Literal["ok", "again", "busy"]
"""again: the keeper does not know where it is with this owner, compare from the beginning. busy: ask again later."""


class Copy(msgspec.Struct, frozen=True, array_like=True):
    """`data` is an encoded DurableJob: as it stands, or with its end."""

    id: JobId
    data: bytes


class Named(msgspec.Struct, frozen=True, array_like=True):
    """A job and the digest of its record."""

    id: JobId
    digest: bytes


class Compare(Message, frozen=True, kw_only=True):
    """`mesh.node.<keeper>.compare`, reply Compared: all jobs of `owner` that have not ended, some at a time, `seq`
    counting from 0. With the `last` the keeper drops the copies that were not named, and those it took over: by then
    the owner has given these up.

    An empty `session` only asks which of the jobs were taken over.
    """

    owner: NodeId
    session: str = ""
    seq: int = 0
    jobs: tuple[Named, ...] = ()
    last: bool = False


class Compared(Message, frozen=True, kw_only=True):
    """Of the jobs named: those the keeper has no copy of, another version of, and those it took over."""

    status: Status = "ok"
    lacking: tuple[JobId, ...] = ()
    stale: tuple[JobId, ...] = ()
    moved: tuple[JobId, ...] = ()


class Mirror(Message, frozen=True, kw_only=True):
    """`mesh.node.<keeper>.mirror`, reply Mirrored: new versions of jobs, and jobs whose end the owner has recorded.
    `seq` counts on from the session's last Compare.
    """

    owner: NodeId
    session: str
    seq: int
    copies: tuple[Copy, ...] = ()
    forget: tuple[JobId, ...] = ()


class Mirrored(Message, frozen=True, kw_only=True):
    status: Status = "ok"


class Released(Message, frozen=True, kw_only=True):
    """`mesh.node.<owner>.released`: the keeper stops in order and will not take over what it has copies of."""

    keeper: NodeId


class Noted(Message, frozen=True, kw_only=True):
    """The owner's answer to Released."""

    owner: NodeId
