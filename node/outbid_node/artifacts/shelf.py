"""What a node knows of the artifacts it holds, in memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple

from outbid_contracts.artifacts import PIECE_BYTES, Artifact, ArtifactId, is_artifact_id, job_of
from outbid_contracts.ids import JobId, NodeId
from outbid_node.artifacts.objects import Meta, as_ranges, digest_of, now_text, sha256_of


class Description(NamedTuple):
    """What is said of an artifact before its content. `keep_s` None: as long as the node keeps such."""

    id: ArtifactId
    owner: NodeId
    name: str
    type: str
    size: int
    sha256: str
    keep_s: float | None = None

    def meta(self, bucket: str, nuid: str, seqs: list[int]) -> Meta:
        """`seqs`: of its chunks, where there are several."""
        metadata = {
            "owner": self.owner,
            "name": self.name,
            "type": self.type,
            "made_ms": str(time.time_ns() // 1_000_000),
        }
        if len(seqs) > 1:
            metadata["seqs"] = as_ranges(seqs)
        if self.keep_s is not None:
            metadata["keep_s"] = repr(self.keep_s)
        return Meta(
            name=self.id,
            bucket=bucket,
            nuid=nuid,
            size=self.size,
            chunks=-(-self.size // PIECE_BYTES),
            digest=digest_of(self.sha256),
            mtime=now_text(),
            metadata=metadata,
        )


@dataclass(frozen=True, slots=True)
class Kept:
    """`seqs`: where its chunks are, as `objects.nth` takes it. `keep_s`: where its job said so."""

    artifact: Artifact
    nuid: str
    seqs: str
    keep_s: float | None

    @classmethod
    def of(cls, meta: Meta, node: NodeId) -> Kept | None:
        """None for an object that is no artifact."""
        said = meta.metadata
        if not is_artifact_id(meta.name):
            return None
        try:
            artifact = Artifact(
                id=meta.name,
                name=said["name"],
                type=said["type"],
                size=meta.size,
                sha256=sha256_of(meta.digest),
                node=node,
                bucket=meta.bucket,
                made_ms=int(said["made_ms"]),
            )
            keep_s = float(said["keep_s"]) if "keep_s" in said else None
        except (KeyError, ValueError):
            return None
        return cls(artifact, meta.nuid, said.get("seqs", ""), keep_s)

    def expires_s(self, keep_s: float) -> float:
        """In Unix seconds; `keep_s` is the node's own term."""
        return self.artifact.made_ms / 1000 + (keep_s if self.keep_s is None else self.keep_s)


@dataclass(eq=False)
class Shelf:
    """All that are held, oldest first."""

    held_bytes: int = 0
    _kept: dict[ArtifactId, Kept] = field(default_factory=dict)
    _jobs: dict[JobId, dict[ArtifactId, None]] = field(default_factory=dict)

    def __contains__(self, id: ArtifactId) -> bool:
        return id in self._kept

    def get(self, id: ArtifactId) -> Kept | None:
        return self._kept.get(id)

    def add(self, kept: Kept) -> Kept | None:
        """Returns the one of the same id that it replaces."""
        before = self.pop(kept.artifact.id)
        id = kept.artifact.id
        self._kept[id] = kept
        self._jobs.setdefault(job_of(id), {})[id] = None
        self.held_bytes += kept.artifact.size
        return before

    def pop(self, id: ArtifactId) -> Kept | None:
        kept = self._kept.pop(id, None)
        if kept is not None:
            self.held_bytes -= kept.artifact.size
            siblings = self._jobs[job_of(id)]
            del siblings[id]
            if not siblings:
                del self._jobs[job_of(id)]
        return kept

    def nuids(self) -> set[str]:
        return {kept.nuid for kept in self._kept.values()}

    def of_job(self, job: JobId) -> list[Artifact]:
        return [self._kept[id].artifact for id in self._jobs.get(job, ())]

    def newest(self, limit: int) -> list[Artifact]:
        return [kept.artifact for kept in list(self._kept.values())[: -limit - 1 : -1]]

    def expired(self, keep_s: float) -> list[ArtifactId]:
        now = time.time()
        return [id for id, kept in self._kept.items() if kept.expires_s(keep_s) <= now]

    def oldest(self, size: int) -> list[ArtifactId]:
        """As many of the oldest as have `size` bytes together."""
        found: list[ArtifactId] = []
        for id, kept in self._kept.items():
            if size <= 0:
                break
            size -= kept.artifact.size
            found.append(id)
        return found
