"""The numpy schedulers step as those of diffusers do, and say no to what they are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outbid_capabilities import image
from outbid_capabilities.image.onnx_noise import TorchNoise
from outbid_capabilities.image.onnx_schedule import NAMES, Scheduler
from outbid_capabilities.runner_kit import RunError

CONFIG: dict[str, Any] = json.loads(
    (Path(image.__file__).parent / "emoji/scheduler/scheduler_config.json").read_text(encoding="utf-8")
)
SHAPE = (1, 4, 16, 16)


def _theirs(name: str) -> Any:
    diffusers = pytest.importorskip("diffusers")
    classes = {
        "ddim": "DDIMScheduler",
        "dpm++2m": "DPMSolverMultistepScheduler",
        "euler": "EulerDiscreteScheduler",
        "euler-a": "EulerAncestralDiscreteScheduler",
    }
    return getattr(diffusers, classes[name]).from_config(CONFIG)


@pytest.mark.parametrize("count", [1, 2, 7, 30, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_every_step_is_the_one_of_diffusers(name: str, count: int) -> None:
    """With a stand-in for the UNet that is as sharp in its answers."""
    theirs = _theirs(name)
    import torch

    theirs.set_timesteps(count)
    steps = Scheduler(CONFIG).steps(name, count)
    noise, generator = TorchNoise(5), torch.Generator("cpu").manual_seed(5)
    latents, before = noise.normal(*SHAPE), None
    sample = torch.randn(SHAPE, generator=generator) * theirs.init_noise_sigma
    more = {"generator": generator} if steps.wants_noise else {}

    assert steps.timesteps == [int(t) for t in theirs.timesteps]
    for step, t in enumerate(theirs.timesteps):
        velocity = np.tanh(3 * latents)
        given = torch.tanh(3 * theirs.scale_model_input(sample, t))
        sample = theirs.step(given, t, sample, **more).prev_sample
        fresh = noise.normal(*SHAPE) if steps.wants_noise else None
        picture = steps.picture(step, latents, velocity)
        latents = steps.advance(step, latents, velocity, before, fresh)
        before = picture

    rounding = 5e-3 if count == 1000 else 2e-3  # theirs starts from noise times 4096, in float32
    np.testing.assert_allclose(latents, sample.numpy(), rtol=0, atol=rounding)


@pytest.mark.parametrize("name", ["dpm++2m-karras", "unipc", "pndm", "heun"])
def test_a_scheduler_it_has_not_is_refused_with_those_it_has(name: str) -> None:
    with pytest.raises(RunError, match=r"ddim, dpm\+\+2m, euler, euler-a") as caught:
        Scheduler(CONFIG).steps(name, 8)

    assert (caught.value.code, caught.value.retry) == ("invalid_request", False)


@pytest.mark.parametrize("count", [0, 1001])
def test_more_steps_than_the_model_has_are_refused(count: int) -> None:
    with pytest.raises(RunError, match="1 to 1000"):
        Scheduler(CONFIG).steps(None, count)


@pytest.mark.parametrize(
    "change",
    [
        {"prediction_type": "epsilon"},
        {"timestep_spacing": "leading"},
        {"rescale_betas_zero_snr": False},
        {"thresholding": True},
        {"_class_name": "PNDMScheduler"},
    ],
    ids=str,
)
def test_a_model_that_asks_for_another_method_is_sent_to_diffusers(change: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="needs the engine diffusers"):
        Scheduler(CONFIG | change)


def test_the_models_own_scheduler_is_the_default() -> None:
    assert Scheduler(CONFIG).steps(None, 8).name == "ddim"
