"""The noise that torch draws on a CPU, without torch: one seed gives the same picture in both engines.

A `torch.Generator` is a Mersenne twister seeded as numpy's old `RandomState` does it. `torch.randn` of 16 and more
values (ATen's `normal_fill`) takes uniform numbers of 24 bits and makes normal ones of them by Box and Muller in blocks
of 16. Latents have 16 values or more; the other way, for fewer, is not here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Latents = NDArray[np.float32]
    """Float32, also where they are no latents; pictures first, then channels, height, width."""

BLOCK = 16


class TorchNoise:
    """Draws what a CPU generator with this seed would, call by call, but for rounding (some 1e-6)."""

    def __init__(self, seed: int) -> None:
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)

    def normal(self, *shape: int) -> Latents:
        """`torch.randn(shape, generator=…)`. At least 16 values."""
        count = int(np.prod(shape))
        if count < BLOCK:
            raise ValueError(f"{count} values are too few: torch draws less than {BLOCK} in another way")
        uniform = self._uniform(count)
        values = np.empty(count, np.float32)
        whole = count - count % BLOCK
        values[:whole] = _box_muller(uniform[:whole])
        if whole < count:  # the last 16 values are drawn anew
            values[-BLOCK:] = _box_muller(self._uniform(BLOCK))
        return values.reshape(shape)

    def _uniform(self, count: int) -> Latents:
        drawn = self._twister.randint(0, 2**32, count, np.uint32)
        return (drawn & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def _box_muller(uniform: Latents) -> Latents:
    """Of each block the first half gives the radii, the second the angles; cosines come first, then sines."""
    halves = uniform.reshape(-1, 2, BLOCK // 2)
    radius = np.sqrt(-2 * np.log(1 - halves[:, 0]))
    angle = np.float32(2 * np.pi) * halves[:, 1]
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1).reshape(-1)
