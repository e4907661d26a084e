"""What a pull is going to fetch, known before the first byte of it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from outbid_contracts.errors import InvalidRequest
from outbid_contracts.files import ModelKind
from outbid_node.files.source import relative

MAX_FILES = 10_000
MAX_BYTES = 4 * 2**40
"""No model is larger; whoever says so is wrong, or means harm."""


class PlannedFile(msgspec.Struct, frozen=True, kw_only=True):
    """`sha256` empty: nobody said. `git`: the SHA-1 by which git knows it, empty likewise. `url`: on the internet.
    `etag`: what the server said of its version.
    """

    path: str
    size: int
    sha256: str = ""
    git: str = ""
    url: str = ""
    etag: str = ""

    def is_same(self, other: PlannedFile) -> bool:
        """Whether what came of one is good for the other."""
        if (self.path, self.size) != (other.path, other.size):
            return False
        if self.sha256 and other.sha256:
            return self.sha256 == other.sha256
        if self.git and other.git:
            return self.git == other.git
        return (self.sha256, self.url, self.etag) == (other.sha256, other.url, other.etag)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Checked. `source` as it was asked for. Raises InvalidRequest where the files cannot be believed."""

    source: str
    kind: ModelKind
    files: tuple[PlannedFile, ...]
    revision: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        if not self.files:
            raise InvalidRequest(f"{self.source} has no files that a model needs")
        if len(self.files) > MAX_FILES or len({file.path for file in self.files}) < len(self.files):
            raise InvalidRequest(f"{self.source} lists {len(self.files)} files, too many or some twice")
        for file in self.files:
            relative(file.path)
            if not 0 <= file.size <= MAX_BYTES:
                raise InvalidRequest(f"{self.source}: {file.path} is said to have {file.size} bytes; no model has")
        if not 0 < self.size <= MAX_BYTES:
            raise InvalidRequest(f"{self.source} is said to have {self.size} bytes in all; no model has")

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One file of a repository or folder, by its path there. `size` None: not known."""

    path: str
    size: int | None
    sha256: str = ""
    git: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository or folder, before anybody chose from it. `texts`: small files that were read for the choice."""

    source: str
    files: Sequence[Listed]
    texts: Mapping[str, bytes] = field(default_factory=dict)
    revision: str = ""
    licence: str = ""
