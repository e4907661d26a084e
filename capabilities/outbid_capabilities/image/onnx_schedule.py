"""Noise schedules and sampling steps in numpy, number for number those of diffusers' schedulers.

Everything is in the variance-preserving form: latents at a level are alpha * picture + sigma * noise with
alpha^2 + sigma^2 = 1. The Euler methods, which diffusers computes in another form, are the same arithmetic here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from outbid_capabilities.runner_kit import RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from outbid_capabilities.image.onnx_noise import Latents

NAMES = ("ddim", "dpm++2m", "euler", "euler-a")

_CLASSES = {
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpm++2m",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-a",
}

_SUPPORTED = {
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "beta_schedule": "scaled_linear",
    "rescale_betas_zero_snr": True,
    "clip_sample": False,
    "thresholding": False,
    "trained_betas": None,
}

LEAST_ALPHA = 2.0**-12
"""What the last level has in all schedulers but DDIM: theirs divide by alpha, which zero terminal SNR makes 0."""


class Level(NamedTuple):
    alpha: float
    sigma: float


CLEAN = Level(1.0, 0.0)


class Steps:
    """How a job with this many steps is sampled. The same for all pictures of a job, and without state of its own.

    `timesteps` are what the UNet is told, `levels` how noisy the latents are before each step and after the last.
    """

    def __init__(self, name: str, config: Mapping[str, Any], count: int) -> None:
        self.name, self.count = name, count
        alphas_bar = _alphas_bar(config)
        trained = len(alphas_bar)
        self.timesteps = [int(t) - 1 for t in np.round(np.arange(trained, 0, -trained / count))][:count]
        least = 0.0 if name == "ddim" else LEAST_ALPHA**2
        alphas_bar = np.maximum(alphas_bar, least)
        self.levels = [_level(alphas_bar[t]) for t in self.timesteps] + [CLEAN]
        if name == "ddim":  # goes back by whole timesteps, wherever the next one is
            back = [t - trained // count for t in self.timesteps]
            self._next = [_level(alphas_bar[t]) if t >= 0 else CLEAN for t in back]
        else:
            self._next = self.levels[1:]

    def noised(self, step: int, picture: Latents, noise: Latents) -> Latents:
        """The picture's latents as noisy as they are before this step."""
        return _mixed(self.levels[step], picture, noise)

    def picture(self, step: int, latents: Latents, velocity: Latents) -> Latents:
        """The picture that the UNet sees in the latents (v-prediction, Salimans and Ho 2022)."""
        alpha, sigma = self.levels[step]
        return alpha * latents - sigma * velocity

    def advance(
        self, step: int, latents: Latents, velocity: Latents, before: Latents | None, fresh: Latents | None
    ) -> Latents:
        """The latents after this step. `before`: `picture` of the step before, None at the first that is run.

        `fresh`: noise that "euler-a" adds, see `wants_noise`.
        """
        picture = self.picture(step, latents, velocity)
        if self.wants_before:
            return self._solver(step, latents, picture, before)
        alpha, sigma = self.levels[step]
        noise = sigma * latents + alpha * velocity
        if self.wants_noise and fresh is not None:
            return self._ancestral(step, picture, noise, fresh)
        return _mixed(self._next[step], picture, noise)

    @property
    def wants_noise(self) -> bool:
        return self.name == "euler-a"

    @property
    def wants_before(self) -> bool:
        return self.name == "dpm++2m"

    def _ancestral(self, step: int, picture: Latents, noise: Latents, fresh: Latents) -> Latents:
        """Goes down further than the next level, and up to it with fresh noise (Karras et al. 2022, as k-diffusion)."""
        here, there = _ratio(self.levels[step]), _ratio(self._next[step])
        up = math.sqrt(there**2 * (here**2 - there**2)) / here
        down = math.sqrt(there**2 - up**2)
        alpha = self._next[step].alpha
        return _mixed(Level(alpha, alpha * down), picture, noise) + fresh * np.float32(alpha * up)

    def _solver(self, step: int, latents: Latents, picture: Latents, before: Latents | None) -> Latents:
        """DPM-Solver++ of second order, multistep, midpoint (Lu et al. 2022, arXiv:2211.01095); the last of first."""
        (_, sigma), (alpha_next, sigma_next) = self.levels[step], self._next[step]
        if sigma_next == 0:
            return picture
        width = _log_snr(self._next[step]) - _log_snr(self.levels[step])
        if before is not None:
            ratio = (_log_snr(self.levels[step]) - _log_snr(self.levels[step - 1])) / width
            picture = picture + np.float32(0.5 / ratio) * (picture - before)
        given = np.float32(alpha_next * math.expm1(-width))
        return np.float32(sigma_next / sigma) * latents - given * picture


@dataclass(frozen=True, slots=True)
class Scheduler:
    """What a model's `scheduler_config.json` says. Raises RunError where it asks for what is not here."""

    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        kind = self.config.get("_class_name")
        odd = [
            f"{key} = {self.config[key]!r}" for key, value in _SUPPORTED.items() if self.config.get(key, value) != value
        ]
        if kind not in _CLASSES or odd:
            what = odd[0] if odd else f"the class {kind}"
            raise RunError(f"the model's scheduler has {what}, which needs the engine diffusers", "runner_unavailable")

    @property
    def default(self) -> str:
        return _CLASSES[self.config["_class_name"]]

    def steps(self, name: str | None, count: int) -> Steps:
        """Raises RunError for a scheduler that this model or engine has not."""
        name = name or self.default
        if name not in NAMES:
            raise RunError(
                f"the scheduler {name!r} does not fit this model; it can be drawn with {', '.join(NAMES)}",
                code="invalid_request",
                retry=False,
            )
        trained = int(self.config["num_train_timesteps"])
        if not 1 <= count <= trained:
            raise RunError(f"`steps` is {count}; this model has 1 to {trained}", code="invalid_request", retry=False)
        return Steps(name, self.config, count)


def _alphas_bar(config: Mapping[str, Any]) -> NDArray[np.float64]:
    """Cumulative products of the alphas, rescaled to zero terminal SNR (Lin et al. 2024, arXiv:2305.08891)."""
    ends = math.sqrt(config["beta_start"]), math.sqrt(config["beta_end"])
    betas = np.linspace(*ends, int(config["num_train_timesteps"])) ** 2
    roots = np.sqrt(np.cumprod(1 - betas))
    rescaled: NDArray[np.float64] = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    return rescaled


def _mixed(level: Level, picture: Latents, noise: Latents) -> Latents:
    return picture * np.float32(level.alpha) + noise * np.float32(level.sigma)


def _level(alpha_bar: float) -> Level:
    return Level(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))


def _ratio(level: Level) -> float:
    """Noise to picture, what the Euler methods call sigma."""
    return level.sigma / level.alpha


def _log_snr(level: Level) -> float:
    """Half the logarithm of the signal-to-noise ratio, the lambda of DPM-Solver."""
    return math.log(level.alpha) - math.log(level.sigma)
