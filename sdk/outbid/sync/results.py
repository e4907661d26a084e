"""What a mesh gives, without `await`. What is not said here is said of the class of the same name in `outbid`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar, overload

from outbid import artifacts as _artifacts
from outbid import chat as _chat
from outbid import images as _images
from outbid import jobs as _jobs
from outbid import mapping as _mapping
from outbid import operating as _operating
from outbid.images import Step
from outbid.mapping import MapProgress, Outcome
from outbid.sync.worker import Worker
from outbid.sync.wrapping import Facade, Steps, call, call_for, steps
from outbid_contracts.artifacts import ArtifactId
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.images import ImageResult
from outbid_contracts.llm import ChatChunk

T = TypeVar("T")


class ChatStream(Steps[ChatChunk]):
    _inner: _chat.ChatStream

    reply = call(_chat.ChatStream.reply)

    @property
    def job(self) -> JobId:
        return self._inner.job

    @property
    def node(self) -> NodeId | None:
        return self._inner.node

    @property
    def name(self) -> str | None:
        return self._inner.name

    @property
    def text(self) -> str:
        return self._inner.text

    @property
    def handovers(self) -> int:
        return self._inner.handovers

    @property
    def restarts(self) -> int:
        return self._inner.restarts


class Artifact(Facade[_artifacts.Artifact]):
    read = call(_artifacts.Artifact.read)
    save = call(_artifacts.Artifact.save)
    stream = steps(_artifacts.Artifact.stream)

    @property
    def id(self) -> ArtifactId:
        return self._inner.id

    @property
    def job(self) -> JobId:
        return self._inner.job

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def type(self) -> str:
        return self._inner.type

    @property
    def size(self) -> int:
        return self._inner.size

    @property
    def sha256(self) -> str:
        return self._inner.sha256

    @property
    def node(self) -> NodeId:
        return self._inner.node

    @property
    def data(self) -> bytes | None:
        return self._inner.data


class Picture(Artifact):
    _inner: _images.Picture

    @property
    def seed(self) -> int:
        return self._inner.seed


class Pictures(Facade[_images.Pictures], Sequence[Picture]):
    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Picture]: ...
    def __getitem__(self, index: int | slice) -> Picture | Sequence[Picture]:
        if isinstance(index, slice):
            return [Picture(one, self._worker) for one in self._inner[index]]
        return Picture(self._inner[index], self._worker)

    def __len__(self) -> int:
        return len(self._inner)

    @property
    def facts(self) -> ImageResult:
        return self._inner.facts

    @property
    def job(self) -> JobId:
        return self._inner.job

    @property
    def node(self) -> NodeId:
        return self._inner.node

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def timings(self) -> Mapping[str, float]:
        return self._inner.timings


class Drawing(Steps[Step]):
    _inner: _images.Drawing

    result = call_for(Pictures, _images.Drawing.result)

    @property
    def job(self) -> JobId:
        return self._inner.job

    @property
    def node(self) -> NodeId | None:
        return self._inner.node

    @property
    def name(self) -> str | None:
        return self._inner.name


class Job(Facade[_jobs.Job]):
    result = call(_jobs.Job.result)
    pictures = call_for(Pictures, _jobs.Job.pictures)
    watch = steps(_jobs.Job.watch)
    status = call(_jobs.Job.status)
    cancel = call(_jobs.Job.cancel)
    prioritise = call(_jobs.Job.prioritise)

    def retry(self) -> Job:
        return Job(self._worker.run(self._inner.retry()), self._worker)

    @property
    def id(self) -> JobId:
        return self._inner.id

    @property
    def owner(self) -> NodeId | None:
        return self._inner.owner

    @property
    def note(self) -> str:
        return self._inner.note

    @property
    def known(self) -> bool:
        return self._inner.known


class Mapped(Steps[T], Generic[T]):
    def __init__(self, inner: _mapping.Mapped[T], worker: Worker) -> None:
        super().__init__(inner, worker)
        self._mapped = inner

    @property
    def progress(self) -> MapProgress:
        return self._mapped.progress

    def outcomes(self) -> Steps[Outcome[T]]:
        return Steps(self._mapped.outcomes(), self._worker)


class NodeHandle(Facade[_operating.NodeHandle]):
    id = call(_operating.NodeHandle.id)
    drain = call(_operating.NodeHandle.drain)
    undrain = call(_operating.NodeHandle.undrain)
    pause = call(_operating.NodeHandle.pause)
    resume = call(_operating.NodeHandle.resume)
    pin = call(_operating.NodeHandle.pin)
    unpin = call(_operating.NodeHandle.unpin)
    evict = call(_operating.NodeHandle.evict)
    quiet = call(_operating.NodeHandle.quiet)
    unquiet = call(_operating.NodeHandle.unquiet)
    calibrate = call(_operating.NodeHandle.calibrate)
    logs = call(_operating.NodeHandle.logs)
    wake = call(_operating.NodeHandle.wake)
