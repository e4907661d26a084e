"""Pictures from the mesh: one being drawn, and what came of it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import msgspec

from outbid.artifacts import Artifact
from outbid.streaming import JobStream
from outbid_contracts import artifacts as wire
from outbid_contracts.errors import InvalidRequest, PayloadTooLarge
from outbid_contracts.events import AttemptLost, Awarded, Chunk, Finished, JobEvent, Loading, Progressed, Waiting
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.images import ImageResult, Preview

if TYPE_CHECKING:
    from outbid.mesh import Mesh

INPUT_BYTES = 6 * 2**20
"""The pictures that go with a request, which may have 8 MiB: as base64 in JSON they are a third larger."""

PictureSource = bytes | os.PathLike[str] | str | Artifact
"""A picture to work on: the content of a PNG, JPEG or WebP file, its path, an artifact or the id of one."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Where a picture is: after `step` of `steps`, with `eta_s` seconds to go, on the node called `node`.

    `preview`: now and then how it looks, the content of a small file of type `preview_type`; then `eta_s` is None.
    """

    step: int
    steps: int
    eta_s: float | None = None
    preview: bytes | None = None
    preview_type: str = ""
    node: str = ""


class Picture(Artifact):
    """One picture, or a film. `seed` made it. `data` is its content where that came with the result; `read()` gets it
    in any case, `save(path)` writes it to a file.
    """

    def __init__(self, mesh: Mesh, facts: wire.Artifact, seed: int) -> None:
        super().__init__(mesh, facts)
        self.seed = seed


class Pictures(Sequence[Picture]):
    """What an image job made, in order. `facts` has all settings that were in force, and what was done otherwise than
    asked (`notes`); `name` is the node that drew it, `joules` what that is thought to have taken.
    """

    def __init__(self, mesh: Mesh, done: Mapping[str, Any]) -> None:
        """`done`: the result's fields beside job, node, name, attempt and timings. Raises InvalidRequest if it is not
        the result of an image job.
        """
        try:
            self.facts = msgspec.convert(done, ImageResult)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"that is not the result of an image job ({error})") from error
        self.job = JobId(done["job"])
        self.node = NodeId(done["node"])
        self.name: str = done.get("name", "")
        self.attempt: int = done.get("attempt", 1)
        self.timings: dict[str, float] = done.get("timings", {})
        seeds = self.facts.seeds or (self.facts.seed,)
        self._pictures = [Picture(mesh, one, seeds[min(n, len(seeds) - 1)]) for n, one in enumerate(self.facts.images)]

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Picture]: ...
    def __getitem__(self, index: int | slice) -> Picture | Sequence[Picture]:
        return self._pictures[index]

    def __len__(self) -> int:
        return len(self._pictures)

    def __repr__(self) -> str:
        return f"Pictures({self._pictures!r})"

    @property
    def model(self) -> str:
        return self.facts.model

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.facts.seeds

    @property
    def seconds(self) -> float:
        return self.facts.seconds

    @property
    def joules(self) -> float | None:
        return self.facts.joules

    @property
    def notes(self) -> tuple[str, ...]:
        return self.facts.notes


class Drawing(JobStream[Step]):
    """Iterate for steps, or `await drawing.result()` for the pictures. Leaving it early cancels the job.

    `on_event` sees what happens beside the steps (Awarded, Waiting, Loading, AttemptLost). Where a node is lost another
    one goes on, at the last checkpoint if it has that (`Awarded.step`), else at the beginning.
    """

    def __init__(
        self,
        mesh: Mesh,
        job: JobId,
        events: AsyncIterator[JobEvent],
        cancel: Callable[[JobId], Awaitable[Any]],
        on_event: Callable[[JobEvent], None] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        super().__init__(job, events, cancel, on_event, timeout_s)
        self._mesh = mesh
        self._pictures: Pictures | None = None

    async def result(self) -> Pictures:
        """The pictures; waits until they are done."""
        return await self._at_the_end(lambda: self._pictures)

    def _take(self, event: JobEvent) -> Step | None:
        match event:
            case Progressed():
                return Step(step=event.step, steps=event.steps, eta_s=event.eta_s, node=self.name or "")
            case Chunk():
                return self._preview(event)
            case Finished():
                self.node, self.name, self._ended = event.node, event.name, True
                self._pictures = Pictures(self._mesh, event.flat())
            case Awarded():
                self.node, self.name = event.node, event.name
                self._notify(event)
            case AttemptLost() | Waiting() | Loading():
                self._notify(event)
            case _:
                pass
        return None

    def _preview(self, event: Chunk) -> Step:
        try:
            shown = msgspec.convert(event.data, Preview)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"the node sent a preview that is none ({error})") from error
        node = self.name or ""
        return Step(step=shown.step, steps=shown.steps, preview=shown.image, preview_type=shown.type, node=node)


def sources(**given: PictureSource | None) -> dict[str, Any]:
    """The parameters for pictures to work on: `image` with the content or `image_from` with an artifact's id.

    Raises OSError for a file that cannot be read, PayloadTooLarge for pictures that do not go into a request.
    """
    params: dict[str, Any] = {}
    for name, source in given.items():
        if isinstance(source, Artifact):
            params[f"{name}_from"] = source.id
        elif isinstance(source, str) and wire.is_artifact_id(source) and not Path(source).exists():
            params[f"{name}_from"] = source
        elif source is not None:
            params[name] = source if isinstance(source, bytes) else _content(Path(source))
    if (size := sum(len(one) for one in params.values() if isinstance(one, bytes))) > INPUT_BYTES:
        raise PayloadTooLarge(_too_large(size))
    return params


def _content(path: Path) -> bytes:
    if (size := path.stat().st_size) > INPUT_BYTES:
        raise PayloadTooLarge(_too_large(size, f"{path}: "))
    return path.read_bytes()


def _too_large(size: int, where: str = "") -> str:
    limit = INPUT_BYTES // 2**20
    return f"{where}{size / 2**20:.1f} MiB of pictures; a request takes {limit}: make it smaller, or save it as JPEG"
