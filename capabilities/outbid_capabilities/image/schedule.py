"""Schedulers by name, and what stands before a scheduler's `step`: it counts, keeps snapshots, skips what is done."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import diffusers
import torch

from outbid_capabilities.runner_kit import RunError

NAMES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpm++2m-karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
    ),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""contracts/images.py's names, as diffusers' documentation pairs them with classes and settings."""

FLOW_NAMES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "dpm++2m": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "prediction_type": "flow_prediction", "use_flow_sigmas": True},
    ),
    "unipc": ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
}
"""For models trained by flow matching (SD 3, Flux, …): the others assume another kind of noise."""


def make(base: Any, name: str | None) -> Any:
    """A scheduler of one's own, set up like the model's own (`base`) where `name` is None. Raises RunError."""
    if name is None:
        return private_copy(base)
    known = FLOW_NAMES if _is_flow(base) else NAMES
    if name not in known or (known is NAMES and not _fits(base, known[name][0])):
        fitting = ", ".join(other for other in known if known is FLOW_NAMES or _fits(base, known[other][0]))
        raise RunError(
            f"scheduler {name} does not fit this model (it has a {type(base).__name__}); "
            + (f"take one of: {fitting}" if fitting else "leave it out"),
            code="invalid_request",
            retry=False,
        )
    cls, changes = known[name]
    config = dict(base.config) | dict(changes)
    if known is FLOW_NAMES and "shift" in base.config:
        config["flow_shift"] = base.config["shift"]
    return getattr(diffusers, cls).from_config(config)


def name_of(scheduler: Any) -> str:
    """The name that a request would use, or the class where there is none."""
    cls, config = type(scheduler).__name__, scheduler.config
    for name, (known, changes) in (*NAMES.items(), *FLOW_NAMES.items()):
        if known == cls and bool(changes.get("use_karras_sigmas")) == bool(config.get("use_karras_sigmas")):
            return name
    return cls


def private_copy(scheduler: Any) -> Any:
    """Everything but the tensors copied: schedulers replace those and never write into them."""
    tensors = {id(value): value for value in vars(scheduler).values() if isinstance(value, torch.Tensor)}
    return copy.deepcopy(scheduler, tensors)


def _is_flow(scheduler: Any) -> bool:
    config = scheduler.config
    return "FlowMatch" in type(scheduler).__name__ or config.get("prediction_type") == "flow_prediction"


def _fits(base: Any, cls: str) -> bool:
    """LCM's class does not list itself among those that take each other's settings, but takes them."""
    names = {other.__name__ for other in base.compatibles} | {type(base).__name__}
    return cls in names or (cls == "LCMScheduler" and "DDIMScheduler" in names)


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """A picture after `step` of `steps`: all that is needed to go on from there.

    `outputs` is what the scheduler's `step` returned, the latents first. `blanks`: the form of each denoiser's answers.
    """

    step: int
    steps: int
    outputs: tuple[torch.Tensor, ...]
    scheduler: dict[str, Any]
    generator: torch.Tensor
    blanks: dict[str, Any] = field(default_factory=dict)


class Misfit(Exception):
    """A snapshot that is not of this picture."""


class Stepper:
    """Takes the place of `step` of a picture's own scheduler. `taken` steps are behind it.

    With a snapshot the steps up to it are not computed: `step` gives back the sample as it came, and at the last of
    them the snapshot's latents, the scheduler's state and the random numbers' are put in force. `after` is called at
    each real step with the result and the predicted picture without noise (None where the scheduler does not tell).
    """

    def __init__(
        self,
        scheduler: Any,
        generator: torch.Generator,
        steps: Callable[[], int],
        after: Callable[[torch.Tensor, torch.Tensor | None], None],
        snapshot: Snapshot | None = None,
    ) -> None:
        self.taken = 0
        self.steps = 0
        self.snapshot = snapshot
        self.blanks: dict[str, Any] = dict(snapshot.blanks) if snapshot is not None else {}
        self._scheduler, self._generator, self._count, self._after = scheduler, generator, steps, after
        self._until = snapshot.step if snapshot is not None else 0
        self._step = scheduler.step
        self._fresh: dict[str, Any] = {}
        parameters = list(inspect.signature(self._step).parameters)
        self._sample_at = parameters.index("sample") if "sample" in parameters else 2
        scheduler.step = functools.wraps(self._step)(self)  # on the object: its class and signature stay what they are

    @property
    def skipping(self) -> bool:
        return self.taken < self._until

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.taken == 0:
            self.steps = self._count()
            self._fresh = _state(self._scheduler)
        sample = kwargs["sample"] if "sample" in kwargs else args[self._sample_at]
        if self.skipping:
            return self._skip(sample, bool(kwargs.get("return_dict", True)))
        result = self._step(*args, **kwargs)
        outputs = tuple(result) if isinstance(result, tuple) else tuple(result.values())
        self.taken += 1
        self._keep(outputs)
        self._after(outputs[0], self._predicted(outputs, sample, args, kwargs))
        return result

    def _skip(self, sample: torch.Tensor, return_dict: bool) -> Any:
        snapshot = self.snapshot
        assert snapshot is not None
        if snapshot.steps != self.steps or snapshot.outputs[0].shape != sample.shape:
            raise Misfit(f"step {snapshot.step} of {snapshot.steps}, {tuple(snapshot.outputs[0].shape)}")
        self.taken += 1
        outputs: tuple[torch.Tensor, ...] = (sample,) * len(snapshot.outputs)
        if not self.skipping:
            outputs = tuple(output.to(sample.device, sample.dtype) for output in snapshot.outputs)
            self._restore(snapshot, sample)
        if not return_dict:
            return outputs
        second = outputs[1] if len(outputs) > 1 else None
        return SimpleNamespace(prev_sample=outputs[0], pred_original_sample=second, denoised=second)

    def _restore(self, snapshot: Snapshot, sample: torch.Tensor) -> None:
        for name, value in snapshot.scheduler.items():
            known = self._fresh.get(name, getattr(type(self._scheduler), name, None))
            if callable(known) or isinstance(known, property) or name == "_internal_dict":
                raise Misfit(f"its scheduler has {name!r:.60}")
            setattr(self._scheduler, name, _placed(value, sample, snapshot.outputs[0].dtype))
        self._generator.set_state(snapshot.generator)

    def _keep(self, outputs: tuple[torch.Tensor, ...]) -> None:
        """Some ten microseconds: tensors are not copied, since nobody writes into them."""
        state = {
            name: value for name, value in _state(self._scheduler).items() if not _same(value, self._fresh.get(name))
        }
        self.snapshot = Snapshot(
            step=self.taken,
            steps=self.steps,
            outputs=outputs,
            scheduler=state,
            generator=self._generator.get_state(),
            blanks=self.blanks,
        )

    def _predicted(
        self, outputs: tuple[torch.Tensor, ...], sample: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> torch.Tensor | None:
        """The picture without noise as this step sees it."""
        if len(outputs) > 1 and outputs[1].shape == sample.shape:
            return outputs[1]
        scheduler = self._scheduler
        if getattr(scheduler.config, "algorithm_type", "") == "dpmsolver++" or getattr(scheduler, "predict_x0", False):
            return next((value for value in reversed(scheduler.model_outputs) if value is not None), None)
        if "FlowMatch" in type(scheduler).__name__ and scheduler.step_index:
            velocity = kwargs["model_output"] if "model_output" in kwargs else args[0]
            return sample - scheduler.sigmas[scheduler.step_index - 1].to(sample) * velocity
        return None


def _state(scheduler: Any) -> dict[str, Any]:
    """What changes from step to step, with lists as they are now. `_internal_dict` is the configuration."""
    found = {name: value for name, value in vars(scheduler).items() if name not in ("_internal_dict", "step")}
    return {name: list(value) if isinstance(value, list) else value for name, value in found.items()}


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    plain = (bool, int, float, str)
    return isinstance(a, plain) and type(a) is type(b) and a == b


def _placed(value: Any, sample: torch.Tensor, dtype: torch.dtype) -> Any:
    """Latents and the like go where the sample is, in its precision; tables of numbers stay what they were."""
    if isinstance(value, torch.Tensor) and value.shape == sample.shape:
        return value.to(sample.device, sample.dtype if value.dtype == dtype else value.dtype)
    if isinstance(value, list):
        return [_placed(part, sample, dtype) for part in value]
    return value
