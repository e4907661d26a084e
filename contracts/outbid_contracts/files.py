"""Model files: fetching them (`mesh.admin.<id>.pull`), and giving them to other nodes of the mesh."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Message

MANIFEST_FILE = "outbid-model.json"
"""In the folder of every model that is whole; written last, so a folder without it is none."""

PIECE_BYTES = 4 * 1024 * 1024
"""Pieces of a file are counted from 0 and all but the last are this long."""

BUS_PIECE_BYTES = 1024 * 1024
"""The most that one `piece` request may ask for."""

ModelKind = Literal["gguf", "diffusers", "file"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class ModelPart(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a model. `path` is relative to its folder, with `/`; `sha256` in hex."""

    path: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What `outbid-model.json` says. `revision`: the commit it came from, empty where the source has none. `variant`:
    the one that was asked for.
    """

    name: str
    source: str
    kind: ModelKind
    files: tuple[ModelPart, ...]
    revision: str = ""
    variant: str = ""
    licence: str = ""
    pulled_ms: int = 0

    @property
    def size(self) -> int:
        return sum(part.size for part in self.files)


class PullRequest(Message, frozen=True, kw_only=True):
    """`mesh.admin.<id>.pull`: fetch a model to that node. The replies are `PullEvent`s, then an empty message.

    `name`: what the model is to be called. `variant`: of a diffusers repository, e.g. `fp16`, or `full` for the one
    without a name. `sha256`: of the single file. `mesh` False: do not ask the other nodes. `cancel`: stop fetching it,
    and throw away what came. The pull goes on when nobody reads its events any more.
    """

    source: Annotated[str, Meta(min_length=1, max_length=2000)]
    name: str = ""
    variant: str = ""
    sha256: str = ""
    mesh: bool = True
    cancel: bool = False


class PullEvent(Message, frozen=True, kw_only=True):
    """How far a pull is: several a second while it downloads. `done` is the last; an error is a service error.

    `size` and `done` in bytes. `sources`: names of the nodes it comes from now, `internet`, or `disk`. `capabilities`:
    what the finished model can be used for on that node; `note` says why it cannot.
    """

    state: Literal["resolving", "found", "downloading", "verifying", "done"]
    source: str
    name: str = ""
    kind: ModelKind | None = None
    licence: str = ""
    files: int = 0
    size: int = 0
    done: int = 0
    bytes_s: float = 0.0
    sources: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    note: str = ""


class RemoveRequest(Message, frozen=True, kw_only=True):
    """`mesh.admin.<id>.rm`: delete a model that was pulled."""

    model: str


class Removed(Message, frozen=True, kw_only=True):
    """`size` in bytes."""

    node: NodeId
    model: str
    size: int


class ManifestQuery(Message, frozen=True, kw_only=True):
    """Node to node (`mesh.node.<id>.manifest`): have you this source, or a single file with this SHA-256?"""

    source: str
    variant: str = ""
    sha256: str = ""


class ManifestReply(Message, frozen=True, kw_only=True):
    """`manifest` None: no. `whole` False: it is being pulled there too, and pieces of it can be had.

    `digests`: for files by their SHA-256, the SHA-256 of the first 1, 2, 3… pieces (32 bytes each, one after another);
    the last is that of the file. So one pass checks each piece and the whole.
    """

    manifest: Manifest | None = None
    whole: bool = True
    digests: dict[str, bytes] = msgspec.field(default_factory=dict)


class PieceRequest(Message, frozen=True, kw_only=True):
    """Node to node (`mesh.node.<id>.piece`), where no direct connection can be made: part of the file with that
    SHA-256.
    """

    sha256: str
    offset: Annotated[int, Meta(ge=0)]
    length: Annotated[int, Meta(ge=1, le=BUS_PIECE_BYTES)]


class PieceReply(Message, frozen=True, kw_only=True):
    """`data` None: this node has it not (yet)."""

    data: bytes | None = None


def is_model_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None
