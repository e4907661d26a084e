"""One job on the diffusers engine: its pictures or frames, how far they are, what of it is told and saved."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
import torch
from numpy.typing import NDArray

from outbid_capabilities.image import animation, checkpoint
from outbid_capabilities.image.drawing import Drawing, Ended, Stopped
from outbid_capabilities.image.engine import Canvas, Facts, Request, units
from outbid_capabilities.image.pipelines import LoadedModel, Settings
from outbid_capabilities.image.preview import Previewer
from outbid_capabilities.image.schedule import Snapshot, make, name_of

Pixels = NDArray[np.uint8]

MAX_SHOWN = 8
"""Pictures in a preview."""


@dataclass(slots=True)
class Progress:
    """Steps over all pictures. `before`: those that a checkpoint brought."""

    done: list[int]
    per_picture: int
    before: int = 0
    told: int = 0
    begun: float = field(default_factory=time.monotonic)

    @property
    def mean(self) -> int:
        """Of the steps of one picture: what is told as the job's step."""
        return sum(self.done) // len(self.done)

    def eta_s(self) -> float | None:
        here, left = sum(self.done) - self.before, self.per_picture * len(self.done) - sum(self.done)
        return (time.monotonic() - self.begun) / here * left if here > 0 else None


class Job:
    """Its pictures are drawn one by one, each by a call of the pipeline; those under way share batches at the hub.

    Raises RunError for a request that the model cannot do.
    """

    def __init__(self, model: LoadedModel, canvas: Canvas, previewer: Previewer) -> None:
        self.model, self.canvas, self.request = model, canvas, canvas.request
        self.settings: Settings = model.settings(self.request)
        self.scope = tuple((name, float(weight)) for name, weight in self.request.loras)
        model.loras.load(self.scope)
        self.scheduler = make(model.base.scheduler, self.settings.scheduler)
        self.max_rows = model.rows(self.settings.width, self.settings.height)
        self._previewer = previewer
        self._begun = time.monotonic()
        self._notes = list(self.settings.notes)
        self._texts: dict[Any, Any] = {}
        self._digest = digest_of(self.request, self.settings, model.digest)
        self._saving = True
        film = self.request.kind == "animate"
        self._film = film and not model.makes_films  # frame by frame
        count = self.request.frames if self._film else 1 if film else len(self.request.seeds)
        self._ready: list[list[Pixels] | None] = [None] * count
        self._drawings = self._resumed(count)
        self._next = 0
        self.progress = self._so_far()

    def seed_of(self, number: int) -> int:
        return self.request.seeds[0 if self._film else number]

    def note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)

    # -- drawing -------------------------------------------------------------------------------------------------------

    def next_drawing(self) -> Drawing | None:
        """The next one to begin, in order; None when all are begun."""
        if self._next == len(self._drawings):
            return None
        self._next += 1
        return self._drawings[self._next - 1]

    def prepare(self, pipe: Any, number: int) -> None:
        """What a frame, or one of several pictures, needs beside the plain call."""
        if len(self._drawings) == 1:
            return
        if hasattr(pipe, "encode_prompt"):
            animation.remember(pipe, self._texts)
        if self._film:
            self._prepare_frame(pipe, number)

    def _prepare_frame(self, pipe: Any, number: int) -> None:
        where = number, self.request.frames, self.request.loop
        if hasattr(pipe, "prepare_latents"):
            other = torch.Generator("cpu").manual_seed(self.request.seeds[0] + 1)
            animation.mix_noise(pipe, other, animation.noise_weights(*where))
        if not self.request.prompt_to:
            return
        if hasattr(pipe, "encode_prompt"):
            animation.mix_prompts(pipe, self.request.prompt_to, animation.prompt_weight(*where))
        else:
            self.note("the model cannot go from one prompt to another; only the first was drawn")

    def stepped(self, drawing: Drawing, taken: int, steps: int) -> None:
        """A picture took a real step. Raises Stopped where the job was cancelled."""
        self.progress.per_picture = max(steps, taken)
        self.progress.done[drawing.number] = taken
        step = self.progress.mean
        if step > self.progress.told:
            self.progress.told = step
            self.canvas.stepped(step, self.progress.per_picture, self.progress.eta_s())
            if step < self.progress.per_picture and not self.canvas.cancelled:
                self._show(step)
                self._save_if_due(step)
        if self.canvas.cancelled:
            raise Stopped

    def ended(self, end: Ended) -> bool:
        """A picture is ready. True: it was the last one."""
        assert end.pictures is not None
        self._ready[end.drawing.number] = end.pictures
        self.progress.done[end.drawing.number] = self.progress.per_picture
        end.drawing.view = None
        return all(pictures is not None for pictures in self._ready)

    # -- telling -------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """All pictures are ready."""
        pictures = [picture for found in self._ready if found is not None for picture in found]
        seconds = time.monotonic() - self._begun
        facts = self._facts(pictures, seconds)
        asked = self.settings.steps * len(self._ready)
        part = min(1.0, (sum(self.progress.done) - self.progress.before) / asked)
        images = self.request.frames if self.request.kind == "animate" else len(pictures)
        work = units(facts.steps, facts.width, facts.height, images)
        measured = {unit: (amount * part, seconds) for unit, amount in work.items()} if part > 0 else {}
        self.canvas.done(pictures, facts, measured)

    def _facts(self, pictures: list[Pixels], seconds: float) -> Facts:
        height, width = pictures[0].shape[:2]
        if self.request.kind == "animate" and len(pictures) != self.request.frames:
            self.note(f"the model made {len(pictures)} frames; it cannot make exactly {self.request.frames}")
        return Facts(
            steps=self.settings.steps,
            width=width,
            height=height,
            guidance=self.settings.guidance,
            scheduler=name_of(self.scheduler),
            device=self.model.device.type,
            dtype=str(self.model.dtype).removeprefix("torch."),
            resumed_at=self.progress.before // len(self._ready),
            seconds=seconds,
            notes=(*self._notes, *self.model.economy.notes),
        )

    def stop(self) -> None:
        """It was cancelled: the last word, after a last checkpoint where one is wanted."""
        if self.canvas.save_wanted and sum(self.progress.done) > self.progress.before:
            self._save(max(1, self.progress.mean))
        self.canvas.stopped()

    def _show(self, step: int) -> None:
        every = self.request.preview_every
        if every == 0 or (every is not None and step % every) or not self.canvas.preview_due:
            return
        begun = [drawing for drawing in self._drawings if drawing.view is not None]
        found = []
        for drawing in begun[: 1 if self._film else MAX_SHOWN]:
            assert drawing.view is not None
            size = self.settings.width, self.settings.height
            found.append(self._previewer.picture(self.model.base, drawing.view, *size))
        pictures = [picture for picture in found if picture is not None]
        if pictures:
            self.canvas.preview(step, self.progress.per_picture, pictures)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _save_if_due(self, step: int) -> None:
        every = self.request.checkpoint_every
        if self._saving and (self.canvas.checkpoint_due if every is None else every > 0 and step % every == 0):
            self._save(step)

    def _save(self, step: int) -> None:
        parts = [drawing.snapshot for drawing in self._drawings]
        try:
            data = checkpoint.pack(self._digest, step, self.progress.per_picture, parts)
        except checkpoint.Unsaveable as error:
            self._saving = False
            self.note(f"no checkpoints were made: {error}")
            return
        self.canvas.saved(step, self.progress.per_picture, data)

    def _resumed(self, count: int) -> list[Drawing]:
        found: list[Snapshot | None] = [None] * count
        if self.request.checkpoint is not None:
            try:
                found = checkpoint.unpack(self.request.checkpoint, self._digest, count)
            except checkpoint.Unreadable as error:
                self.note(f"the checkpoint was of no use, so it was drawn from the beginning: {error}")
        return [Drawing(self, number, snapshot) for number, snapshot in enumerate(found)]

    def _so_far(self) -> Progress:
        snapshots = [drawing.snapshot for drawing in self._drawings]
        steps = max((snapshot.steps for snapshot in snapshots if snapshot is not None), default=self.settings.steps)
        done = [snapshot.step if snapshot is not None else 0 for snapshot in snapshots]
        return Progress(done, steps, before=sum(done), told=sum(done) // len(done))


def digest_of(request: Request, settings: Settings, model: str) -> str:
    """Equal for requests whose checkpoints fit each other."""
    plain = [
        model, request.kind, request.prompt, request.negative_prompt, request.prompt_to, list(request.seeds),
        [list(lora) for lora in request.loras], request.frames, request.loop, request.scheduler, settings.steps,
        settings.width, settings.height, settings.guidance, settings.strength,
    ]  # fmt: skip
    digest = hashlib.sha256(msgpack.packb(plain))
    for picture in (request.image, request.mask):
        digest.update(b"-" if picture is None else repr(picture.shape).encode() + picture.tobytes())
    return digest.hexdigest()
