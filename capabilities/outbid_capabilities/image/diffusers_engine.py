"""The engine for any diffusers pipeline: one thread that computes, and in it as many pictures at once as there is room.

The thread loads the model, so that all of torch's own threads hang on it, and then does by turns: begin what was
submitted, run the denoiser for one batch (see `hub`), let the pictures of the batch go on. A job's error ends that job.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import torch

from outbid_capabilities.image.drawing import Ended, Stopped
from outbid_capabilities.image.engine import Canvas, EngineOptions, Facts, Progress, Request, units
from outbid_capabilities.image.hub import Hub
from outbid_capabilities.image.job import Job
from outbid_capabilities.image.memory import is_shortage, shortage
from outbid_capabilities.image.pipelines import LoadedModel, size_factor
from outbid_capabilities.image.preview import Previewer
from outbid_capabilities.llm.sizing import default_threads
from outbid_capabilities.runner_kit import RunError

if TYPE_CHECKING:
    from outbid_capabilities.image.engine import Picture

MAX_SLOTS = 8

WARM_STEPS = 3
WARM_PIXELS = 512 * 512
"""Larger pictures are not drawn to warm up a processor: it would take minutes."""


class DiffusersEngine:
    """See `Engine`. `fixed_s` of a picture (text encoder, VAE) is part of the rates, at the model's default steps.

    Raises RunError saying what is wrong with the model or the settings.
    """

    def __init__(self, options: EngineOptions, progress: Progress) -> None:
        self._options = options
        self._inbox: queue.SimpleQueue[Canvas | None] = queue.SimpleQueue()
        self._jobs: list[Job] = []
        self._closed = False
        loaded: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, args=(progress, loaded), name="torch", daemon=True)
        self._thread.start()
        loaded.result()

    def submit(self, canvas: Canvas) -> None:
        self._inbox.put(canvas)

    def close(self) -> None:
        """Jobs under way fail. Returns when the step under way is over."""
        self._closed = True
        self._inbox.put(None)
        self._thread.join()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _main(self, progress: Progress, loaded: Future[None]) -> None:
        try:
            self._load(progress)
        except BaseException as error:
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        while not self._closed:
            try:
                self._turn()
            except Exception as error:  # no job's own: none can go on, the engine does
                for job in list(self._jobs):
                    self._fail(job, error)
        for job in list(self._jobs):
            self._fail(job, RunError("the runner is being stopped"))

    def _load(self, progress: Progress) -> None:
        torch.set_grad_enabled(False)
        threads = self._options.threads or default_threads()
        torch.set_num_threads(threads)
        progress(None, "loading the model")
        self.model = LoadedModel(self._options)
        self.hub = Hub(self.model.rows(), self.model.loras.activate, self.model.economy.more)
        self._previewer = Previewer(self.model.base)
        self.slots = self._options.slots or max(1, min(MAX_SLOTS, self.hub.max_rows // 2))
        progress(0.8, "warming up")
        self.rates = self._warm_up()
        self.info: dict[str, Any] = {
            "engine": "diffusers",
            "pipeline": type(self.model.base).__name__,
            "device": self.model.device.type,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "threads": threads,
            "batch": self.hub.max_rows,
        }

    def _turn(self) -> None:
        """Begin what came, then one forward pass. Blocks only when there is nothing to do."""
        while not self._inbox.empty() or not (self._jobs or self._closed):
            canvas = self._inbox.get()
            if canvas is not None:
                self._begin(canvas)
        if self.hub.waiting:
            self._stop_cancelled()
        if self.hub.waiting:
            batch = self.hub.next_batch()
            for call, answer in zip(batch, self.hub.answer(batch), strict=True):
                if call.owner in self._jobs:  # a job fails as a whole, also by another picture of this batch
                    self._took(call.owner, self.hub.resume(call, answer))
                else:
                    self.hub.resume(call, Stopped())

    def _begin(self, canvas: Canvas) -> None:
        if canvas.cancelled:
            canvas.stopped()
            return
        try:
            job = Job(self.model, canvas, self._previewer)
        except Exception as error:
            canvas.failed(error)
            return
        self._jobs.append(job)
        for _ in range(self.hub.max_rows):
            self._next(job)

    def _next(self, job: Job) -> None:
        """Begin the job's next picture, if there is one."""
        drawing = job.next_drawing() if job in self._jobs else None
        if drawing is None:
            return
        try:
            self.model.loras.activate(job.scope)  # the text encoder may have a part in them
        except Exception as error:
            self._fail(job, error)
            return
        self._took(job, self.hub.begin(drawing.draw))

    def _took(self, job: Job, end: Ended | None) -> None:
        """A greenlet came back: with None it waits for its next step."""
        if end is None or job not in self._jobs:
            return
        if isinstance(end.error, Stopped):
            self._stop(job)
        elif end.error is not None:
            self._fail(job, end.error)
        elif job.ended(end):
            self._finish(job)
        else:
            self._next(job)

    def _stop_cancelled(self) -> None:
        for job in [job for job in self._jobs if job.canvas.cancelled]:
            self._stop(job)

    def _finish(self, job: Job) -> None:
        self._jobs.remove(job)
        try:
            job.finish()
        except Exception as error:
            job.canvas.failed(error)

    def _stop(self, job: Job) -> None:
        self._leave(job)
        try:
            job.stop()
        except Exception as error:
            job.canvas.failed(error)

    def _fail(self, job: Job, error: BaseException) -> None:
        self._leave(job)
        if is_shortage(error):
            size = f"a picture of {job.settings.width} x {job.settings.height}"
            error = shortage(error, self.model.device, size)
        job.canvas.failed(error)

    def _leave(self, job: Job) -> None:
        self._jobs.remove(job)
        self.hub.drop(job, Stopped())

    # -- how much, how fast --------------------------------------------------------------------------------------------

    def _warm_up(self) -> dict[str, float]:
        """Seconds per unit, from a picture of a few steps; the first of them is slow and not counted."""
        defaults = self.model.info["defaults"]
        width, height = defaults["width"], defaults["height"]
        factor = size_factor(self.model.base)
        while self.model.device.type == "cpu" and width * height > WARM_PIXELS:
            width, height = (max(factor, side // 2 // factor * factor) for side in (width, height))
        films = self.model.makes_films
        request = Request(
            kind="animate" if films else "generate",
            prompt="a",
            steps=WARM_STEPS,
            width=width,
            height=height,
            frames=8 if films else 0,
        )
        warm = Warm(request)
        self._begin(warm)
        while self._jobs:
            self._turn()
        if warm.error is not None:
            code = getattr(warm.error, "code", "")
            code = code if code == "out_of_memory" else "runner_unavailable"
            raise RunError(f"{self.model.folder.name} draws nothing: {warm.error}", code=code) from warm.error
        images = 8 if films else 1
        step_s = warm.step_s() / images * (defaults["width"] * defaults["height"] / (width * height))
        fixed_s = max(0.0, warm.total_s - step_s * images * WARM_STEPS)
        whole_s = fixed_s + step_s * defaults["steps"]
        work = units(defaults["steps"], defaults["width"], defaults["height"], 1)
        return {unit: whole_s / amount for unit, amount in work.items()}


class Warm:
    """A canvas for the warm-up."""

    cancelled = save_wanted = preview_due = checkpoint_due = False

    def __init__(self, request: Request) -> None:
        self.request = request
        self.error: BaseException | None = None
        self.total_s = 0.0
        self._at: list[float] = []

    def step_s(self) -> float:
        """Of the later steps. A pipeline that takes one step whatever is asked has no later ones."""
        pauses = [b - a for a, b in zip(self._at, self._at[1:], strict=False)]
        return min(pauses) if pauses else self.total_s

    def stepped(self, step: int, steps: int, eta_s: float | None) -> None:
        self._at.append(time.monotonic())

    def preview(self, step: int, steps: int, pictures: Sequence[Picture]) -> None: ...

    def saved(self, step: int, steps: int, checkpoint: bytes) -> None: ...

    def done(self, pictures: Sequence[Picture], facts: Facts, measured: Mapping[str, tuple[float, float]]) -> None:
        self.total_s = facts.seconds

    def failed(self, error: BaseException) -> None:
        self.error = error

    def stopped(self) -> None:
        self.error = RunError("the warm-up was stopped")
