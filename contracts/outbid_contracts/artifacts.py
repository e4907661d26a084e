"""Artifacts: files that jobs made (images, sounds, videos), and files that jobs are to work on.

An artifact is an object of the JetStream object store `ARTIFACTS_<node>` of the node that holds it, so `nats object
get` reads it there. Its id says which job made it: `<job>.<attempt>.<number>`; the attempt keeps a stale one from
overwriting what the job's result names.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from msgspec import Meta

from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import Message

ArtifactId = str

INLINE_BYTES = 256 * 1024
"""Artifacts of an interactive job that together are no larger come with the reply (`Artifact.data`) too."""

PIECE_BYTES = 1024 * 1024
"""Chunk of an object in the store, and of a piece on its way; the last one of an artifact may be smaller."""

FOUND = 100
"""How many artifacts a listing has at most, beside those of one job."""

READ_BYTES = 16 * 1024 * 1024
"""What one `read` may ask for."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\.\d{1,10}\.\d{1,6}")


class Artifact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file as results name it. `name` is a suggestion for a file name, `type` its media type, `size` in bytes.

    `node` holds it, as object `id` of the bucket `bucket`, since `made_ms`. `data`: its content, where that is small.
    """

    id: ArtifactId
    name: str
    type: str
    size: int
    sha256: str
    node: NodeId
    bucket: str
    made_ms: int = 0
    data: bytes | None = None


class FindArtifacts(Message, frozen=True, kw_only=True):
    """`mesh.artifacts.find`: one by its id, or all of a job; without either the newest FOUND of the mesh, newest first.
    Any node answers; the reply is ArtifactList. Between nodes (`mesh.node.<id>.artifacts`): those that this node holds.
    """

    id: ArtifactId | None = None
    job: JobId | None = None


class ArtifactList(Message, frozen=True, kw_only=True):
    artifacts: tuple[Artifact, ...] = ()
    silent: tuple[str, ...] = ()
    """Names of nodes that did not answer in time: what they hold is not in the list."""


class ReadArtifact(Message, frozen=True, kw_only=True):
    """`mesh.artifacts.read`: `length` bytes (at most READ_BYTES) from `offset` on; 0 is a whole READ_BYTES.

    The replies are raw bytes in order, PIECE_BYTES or less each, with header `Outbid-Offset`; an empty one with
    `Outbid-Size` (of the whole artifact) ends them, also where `offset` is at or past the end. `node` is the holder if
    the caller knows it.

    Between nodes (`mesh.node.<id>.read`) the holder answers the caller's inbox: `via` is the node that passed the
    question on, with which the holder keeps pace; `format` that of an error.
    """

    id: ArtifactId
    offset: Annotated[int, Meta(ge=0)] = 0
    length: Annotated[int, Meta(ge=0, le=READ_BYTES)] = 0
    node: NodeId | None = None
    via: NodeId | None = None
    format: str = "application/json"


class PutArtifact(Message, frozen=True, kw_only=True):
    """Winner to holder (`mesh.node.<id>.artifact`): one piece, whole in itself with the first and last.

    `size` and `sha256` are those of the whole. Pieces may come in any order within a window; the one that makes it
    whole is answered once the object is on disk. `owner` is the job's; `keep_s`: how long it is to be kept, if the job
    says so.
    """

    job: JobId
    owner: NodeId
    id: ArtifactId
    name: str
    type: str
    size: int
    sha256: str
    offset: int
    data: bytes
    keep_s: float | None = None


class PutReply(Message, frozen=True, kw_only=True):
    """`artifact` once it is whole and on disk."""

    artifact: Artifact | None = None


def artifact_id(job: JobId, attempt: int, number: int) -> ArtifactId:
    return f"{job}.{attempt}.{number}"


def is_artifact_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def job_of(id: ArtifactId) -> JobId:
    return JobId(id.rsplit(".", 2)[0])


def bucket_of(node: NodeId) -> str:
    return f"ARTIFACTS_{node}"
