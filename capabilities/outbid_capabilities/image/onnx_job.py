"""One job on the ONNX engine: from a checked request over the denoising steps to pictures."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, cast

import numpy as np

from outbid_capabilities.image import onnx_checkpoint
from outbid_capabilities.image.engine import Canvas, Facts, Request, units
from outbid_capabilities.image.onnx_checkpoint import Checkpoint
from outbid_capabilities.image.onnx_model import OnnxModel
from outbid_capabilities.image.onnx_noise import TorchNoise
from outbid_capabilities.runner_kit import RunError

if TYPE_CHECKING:
    from outbid_capabilities.image.onnx_noise import Latents

MAX_SIDE = 512
"""Pixels. The model was trained on 64; at 512 a step takes a second and 700 MiB."""

STRENGTH = 0.8
"""Where an edit leaves it open; 1 with a mask."""

PREVIEWS = 4
"""Pictures in a preview; of more, these are spread evenly."""


class Job:
    """State of one job. Only the engine's thread touches it, but for the canvas' flags.

    `step` counts in the schedule; an edit begins at `first`, past 0.
    """

    def __init__(self, canvas: Canvas, model: OnnxModel) -> None:
        """Raises RunError for a request that cannot be drawn."""
        self.canvas, self.request, self._model = canvas, canvas.request, model
        self._begun = time.perf_counter()
        request, told = self.request, model.defaults
        self._width, self._height = request.width or int(told["width"]), request.height or int(told["height"])
        self._guidance = float(told["guidance"] if request.guidance is None else request.guidance)
        self._check()
        self._steps = model.scheduler.steps(request.scheduler, request.steps or int(told["steps"]))
        self._notes = self._size_note()
        self._words = self._encode_words()
        self.step = self.first = self._first_step()
        self.resumed_at = 0
        self._before: Latents | None = None
        self._latents = self._start()
        self._resume()

    # -- what the engine needs to know ---------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of its latents; jobs with the same can share a pass."""
        height, width = self._latents.shape[2:]
        return height, width

    @property
    def finished(self) -> bool:
        return self.step == self._steps.count

    def rows(self) -> tuple[Latents, list[int], Latents]:
        """Latents, timesteps and words of the next pass: with guidance each picture twice, first without the words."""
        times = 2 if self._guidance > 1 else 1
        timesteps = [self._steps.timesteps[self.step]] * (len(self._latents) * times)
        return np.concatenate([self._latents] * times), timesteps, self._words

    def take(self, velocity: Latents) -> None:
        """Do a step with what the pass gave, and report it."""
        if self._guidance > 1:
            without, given = np.split(velocity, 2)
            velocity = without + np.float32(self._guidance) * (given - without)
        picture = self._steps.picture(self.step, self._latents, velocity)
        fresh = self._drawn() if self._steps.wants_noise else None
        self._latents = self._steps.advance(self.step, self._latents, velocity, self._before, fresh)
        self._before = picture if self._steps.wants_before else None
        self.step += 1
        self._keep_unmasked()
        self._report(picture)

    def save(self) -> None:
        """Hand out a checkpoint, if there is anything to save."""
        if self.first < self.step < self._steps.count:
            data = onnx_checkpoint.pack(self._digest(), Checkpoint(self.step, self._latents, self._before))
            self.canvas.saved(*self._progress(), data)

    def finish(self) -> None:
        """Decode and hand over the pictures. Raises RunError where the numbers overflowed."""
        if not np.isfinite(self._latents).all():
            raise RunError("the model's numbers overflowed; try a lower guidance", code="invalid_request", retry=False)
        pictures = self._model.decode(self._latents)
        seconds = time.perf_counter() - self._begun
        self.canvas.done(pictures, self._facts(seconds), self._measured(seconds))

    # -- the beginning -------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        request, sides = self.request, (self._width, self._height)
        if any(side % 8 or not 8 <= side <= MAX_SIDE for side in sides):
            raise _invalid(
                f"the size {self._width}x{self._height} does not do: this model draws multiples of 8 up to {MAX_SIDE}"
            )
        if not math.isfinite(self._guidance):
            raise _invalid("`guidance` is not a number")
        if request.loras:
            raise RunError("the ONNX engine takes no LoRAs; the engine diffusers does", code="unknown_model")
        _check_pictures(request, (self._height, self._width))

    def _size_note(self) -> list[str]:
        known = int(self._model.defaults["width"]), int(self._model.defaults["height"])
        if (self._width, self._height) == known:
            return []
        return [f"the model was trained on pictures of {known[0]}x{known[1]}; at other sizes it draws worse"]

    def _encode_words(self) -> Latents:
        """Embeddings for all rows of a pass: the negative prompt's for each picture, then the prompt's."""
        request = self.request
        texts = [request.negative_prompt, request.prompt, request.prompt_to or request.prompt]
        words, cut = self._model.encode_words(texts)
        if cut:
            self._notes.append(
                f"the model reads {words.shape[1] - 2} pieces of words; the rest of the text is left out"
            )
        share = np.array(self._shares(), np.float32)[:, None, None]
        given = words[1] + share * (words[2] - words[1])
        if self._guidance <= 1:
            return cast("Latents", given)
        return np.concatenate([np.broadcast_to(words[0], given.shape), given])

    def _shares(self) -> list[float]:
        """Of `prompt_to`, for each picture."""
        count, request = self.request.frames, self.request
        if request.kind != "animate":
            return [0.0] * len(request.seeds)
        if request.loop:
            return [(1 - math.cos(2 * math.pi * n / count)) / 2 for n in range(count)]
        return [n / max(1, count - 1) for n in range(count)]

    def _first_step(self) -> int:
        if self.request.kind != "edit":
            return 0
        strength = self.request.strength
        if strength is None:
            strength = STRENGTH if self.request.mask is None else 1.0
        return self._steps.count - max(1, min(int(self._steps.count * strength), self._steps.count))

    def _start(self) -> Latents:
        """Noise, or the noisy picture to edit."""
        model, request = self._model, self.request
        one = 1, model.channels, self._height // model.latent_factor, self._width // model.latent_factor
        self._noises = [TorchNoise(seed) for seed in request.seeds]
        self._noise = np.concatenate([noise.normal(*one) for noise in self._noises])
        if request.kind == "animate":
            self._noise = self._turned(self._noise, TorchNoise(request.seeds[0] + 1).normal(*one))
        self._image = None if request.image is None else model.encode(request.image)
        every = model.latent_factor
        self._mask = None if request.mask is None else request.mask[::every, ::every] >= 128
        return self._noise if self._image is None else self._steps.noised(self.first, self._image, self._noise)

    def _turned(self, here: Latents, there: Latents) -> Latents:
        """Noise for each frame, from one to the other: a full circle when looping, else a quarter."""
        count, loop = self.request.frames, self.request.loop
        angles = np.arange(count) * (2 * math.pi / count if loop else math.pi / 2 / max(1, count - 1))
        turn = angles[:, None, None, None]
        found: Latents = (np.cos(turn) * here + np.sin(turn) * there).astype(np.float32)
        return found

    def _resume(self) -> None:
        data = self.request.checkpoint
        if data is None:
            return
        found = onnx_checkpoint.unpack(data, self._digest(), self._latents.shape)
        if found is None or not self.first < found.step < self._steps.count:
            self._notes.append("the checkpoint does not fit this request; it was drawn from the beginning")
            return
        if self._steps.wants_noise:
            for _ in range(self.first, found.step):
                self._drawn()
        self.step, self._latents, self._before = found
        self.resumed_at = self.step - self.first

    def _digest(self) -> str:
        return onnx_checkpoint.digest(self.request, self._model.defaults.get("sha256"))

    # -- a step --------------------------------------------------------------------------------------------------------

    def _drawn(self) -> Latents:
        """The noise of one step; the frames of a film share it."""
        return np.concatenate([noise.normal(1, *self._latents.shape[1:]) for noise in self._noises])

    def _keep_unmasked(self) -> None:
        """What is not to change is put back, as noisy as the rest."""
        if self._mask is not None and self._image is not None:
            kept = self._image
            if not self.finished:
                kept = self._steps.noised(self.step, self._image, self._noise)
            self._latents = np.where(self._mask, self._latents, kept)

    def _report(self, picture: Latents) -> None:
        done, steps = self._progress()
        each_s = (time.perf_counter() - self._begun) / max(1, done - self.resumed_at)
        self.canvas.stepped(done, steps, each_s * (steps - done))
        if self.finished or self.canvas.cancelled:
            return
        if _due(self.request.preview_every, done, self.canvas.preview_due):
            chosen = np.linspace(0, len(picture), min(PREVIEWS, len(picture)), endpoint=False).astype(int)
            self.canvas.preview(done, steps, self._model.decode(picture[chosen]))
        if _due(self.request.checkpoint_every, done, self.canvas.checkpoint_due):
            self.save()

    def _progress(self) -> tuple[int, int]:
        """(steps done, steps to do), without those that an edit leaves out."""
        return self.step - self.first, self._steps.count - self.first

    # -- the end -------------------------------------------------------------------------------------------------------

    def _facts(self, seconds: float) -> Facts:
        return Facts(
            steps=self._steps.count,
            width=self._width,
            height=self._height,
            guidance=self._guidance,
            scheduler=self._steps.name,
            device="cpu",
            dtype="float32",
            resumed_at=self.resumed_at,
            seconds=seconds,
            notes=tuple(self._notes),
        )

    def _measured(self, seconds: float) -> dict[str, tuple[float, float]]:
        """Of all units the part that was really done."""
        part = (self._steps.count - self.first - self.resumed_at) / self._steps.count
        asked = units(self._steps.count, self._width, self._height, len(self._latents))
        return {unit: (amount * part, seconds) for unit, amount in asked.items()}


def _check_pictures(request: Request, size: tuple[int, int]) -> None:
    """The runner decodes and scales what a caller sends; an engine by itself must not fall over either."""
    if request.kind == "edit" and request.image is None:
        raise _invalid("there is no picture to edit")
    if request.kind == "animate" and request.frames < 1:
        raise _invalid(f"`frames` is {request.frames}; a film has at least one")
    for name, picture, shape in (("image", request.image, (*size, 3)), ("mask", request.mask, size)):
        if picture is not None and (picture.shape != shape or picture.dtype != np.uint8):
            raise _invalid(f"the {name} is {picture.shape} {picture.dtype}, not {shape} uint8")


def _due(every: int | None, step: int, due: bool) -> bool:
    return due if every is None else every > 0 and step % every == 0


def _invalid(message: str) -> RunError:
    return RunError(message, code="invalid_request", retry=False)
