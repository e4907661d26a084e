"""One picture of a job: the pipeline's own call, in a greenlet, with what stands in for its scheduler and denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from numpy.typing import NDArray

from outbid_capabilities.image.hub import Denoiser
from outbid_capabilities.image.memory import is_shortage
from outbid_capabilities.image.pipelines import DENOISERS, refusal
from outbid_capabilities.image.schedule import Misfit, Snapshot, Stepper, private_copy
from outbid_capabilities.runner_kit import RunError

if TYPE_CHECKING:
    from outbid_capabilities.image.job import Job


class Stopped(BaseException):
    """Thrown through a pipeline's call whose job was cancelled or failed elsewhere. No `except Exception` holds it."""


@dataclass(frozen=True, slots=True)
class Ended:
    """`pictures`: one, or the frames of a film that the model makes in one go; None with an error."""

    drawing: Drawing
    pictures: list[NDArray[np.uint8]] | None
    error: BaseException | None = None


class Drawing:
    """`number`: which picture or frame of the job it is."""

    def __init__(self, job: Job, number: int, snapshot: Snapshot | None = None) -> None:
        self.job, self.number = job, number
        self.view: torch.Tensor | None = None
        """Latents to look at: the picture without noise as the last step saw it."""
        self._resume = snapshot
        self._stepper: Stepper | None = None

    @property
    def snapshot(self) -> Snapshot | None:
        return self._stepper.snapshot if self._stepper is not None else self._resume

    @property
    def _went_on(self) -> bool:
        """Whether a real step came after the snapshot it was to go on from."""
        return self._stepper is not None and self._resume is not None and self._stepper.taken > self._resume.step

    def draw(self) -> Ended:
        """Runs in a greenlet. Short of memory outside the denoiser, it turns on what saves some and goes on from where
        it was: the call begins again, and the steps it has are skipped.
        """
        while True:
            try:
                return Ended(self, self._draw())
            except Exception as error:
                if is_shortage(error) and self.job.model.economy.more():
                    self._resume = self.snapshot
                elif self._resume is not None and not self._went_on:
                    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                    self.job.note(f"the checkpoint was of no use, so it was drawn from the beginning: {text:.200}")
                    self._resume, self._stepper = None, None
                else:
                    return Ended(self, None, self._explained(error))
            except Stopped as error:
                return Ended(self, None, error)

    def _draw(self) -> list[NDArray[np.uint8]]:
        job = self.job
        generator = torch.Generator("cpu").manual_seed(job.seed_of(self.number))  # equal numbers for every device
        pipe = job.model.pipe(job.request)
        own = vars(pipe)
        own["scheduler"] = scheduler = private_copy(job.scheduler)
        own["maybe_free_model_hooks"] = lambda: None  # others are at work with the same models

        def steps() -> int:
            return int(own.get("_num_timesteps") or len(scheduler.timesteps))

        self._stepper = stepper = Stepper(scheduler, generator, steps, self._stepped, self._resume)
        for name in DENOISERS:
            if own.get(name) is not None:
                blank, seen = partial(self._blank, stepper, name), partial(_record, stepper.blanks, name)
                own[name] = Denoiser(own[name], job, job.scope, blank, seen)
        job.prepare(pipe, self.number)
        output = pipe(prompt=job.request.prompt, generator=generator, **job.settings.call)
        if any(getattr(output, "nsfw_content_detected", None) or ()):
            job.note("the model's own safety checker blackened a picture")
        return _pictures(output, job.model.dtype)

    def _stepped(self, latents: torch.Tensor, predicted: torch.Tensor | None) -> None:
        assert self._stepper is not None
        self.view = latents if predicted is None else predicted
        self.job.stepped(self, self._stepper.taken, self._stepper.steps)

    def _blank(self, stepper: Stepper, name: str, rows: int, return_dict: bool) -> Any:
        """The answer for a step that is skipped: zeros of the right shape. None for a step to be computed."""
        if not stepper.skipping:
            return None
        if name not in stepper.blanks:
            raise Misfit(f"it says nothing of {name}")
        zeros = _zeros(stepper.blanks[name], rows, self.job.model.device)
        return Transformer2DModelOutput(sample=zeros[0]) if return_dict else zeros

    def _explained(self, error: Exception) -> BaseException:
        """What a pipeline says of its arguments before it has computed anything is about the request."""
        if isinstance(error, ValueError | TypeError) and (self._stepper is None or self._stepper.taken == 0):
            text = " ".join(str(error).split())
            return refusal(f"the model refuses this request: {text:.300}")
        return error


def _record(blanks: dict[str, Any], name: str, rows: int, answer: Any) -> None:
    if name not in blanks:
        blanks[name] = [_form(value, rows) for value in _values(answer)]


def _values(answer: Any) -> Sequence[Any]:
    if isinstance(answer, dict):
        return list(answer.values())
    return answer if isinstance(answer, tuple) else (answer,)


def _form(value: Any, rows: int) -> Any:
    """-1 stands for the rows of a call, which may have more or fewer of them."""
    if isinstance(value, torch.Tensor):
        first, *rest = value.shape
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": [-1 if first == rows else first, *rest]}
    return [_form(part, -1) for part in value] if isinstance(value, list | tuple) else None


def _zeros(forms: Any, rows: int, device: torch.device) -> tuple[Any, ...]:
    try:
        return tuple(_zero(form, rows, device) for form in forms)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise Misfit(f"shapes that make no sense ({type(error).__name__})") from None


def _zero(form: Any, rows: int, device: torch.device) -> Any:
    if form is None:
        return None
    if isinstance(form, list):
        return [_zero(part, rows, device) for part in form]
    dtype = getattr(torch, form["dtype"])
    return torch.zeros([rows if side == -1 else side for side in form["shape"]], dtype=dtype, device=device)


def _pictures(output: Any, dtype: torch.dtype) -> list[NDArray[np.uint8]]:
    """Of a pipeline's answer. Floats from 0 to 1, a batch of one: height x width x 3, or of films frames x …"""
    batch = np.asarray(output.frames[0] if hasattr(output, "frames") else output.images)
    if batch.ndim != 4 or batch.shape[-1] != 3:
        raise RunError(f"the model gave no picture in colours, but {batch.shape}", retry=False)
    if batch.dtype == np.uint8:
        return list(batch)
    if not np.isfinite(batch).all():
        name = str(dtype).removeprefix("torch.")
        raise RunError(f"the model computed what is no number (NaN) in {name}; set image.dtype to float32")
    return list((batch * 255).round().astype(np.uint8))
