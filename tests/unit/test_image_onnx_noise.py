"""One seed gives the same noise with torch and without."""

from __future__ import annotations

import numpy as np
import pytest

from outbid_capabilities.image.onnx_noise import TorchNoise

SEEDS = (0, 1, 2**32 + 5, 2**53 - 1)
SHAPES = ((1, 4, 16, 16), (1, 4, 2, 2), (17,), (3, 7, 5), (1, 4, 18, 32))


@pytest.mark.parametrize("seed", SEEDS)
def test_it_draws_what_torch_draws_call_after_call(seed: int) -> None:
    torch = pytest.importorskip("torch")
    generator, noise = torch.Generator("cpu").manual_seed(seed), TorchNoise(seed)

    for shape in SHAPES:
        wanted = torch.randn(shape, generator=generator).numpy()
        np.testing.assert_allclose(noise.normal(*shape), wanted, rtol=0, atol=2e-6)


def test_it_draws_what_torch_drew_also_where_torch_is_not() -> None:
    drawn = TorchNoise(42).normal(17)

    wanted = [1.9269153, 1.4872841, 0.9007172, -2.1055214]  # torch.manual_seed(42); torch.randn(16)
    np.testing.assert_allclose(TorchNoise(42).normal(16)[:4], wanted, atol=2e-6)
    assert drawn.dtype == np.float32


def test_too_few_values_are_refused_rather_than_drawn_otherwise() -> None:
    with pytest.raises(ValueError, match="too few"):
        TorchNoise(0).normal(15)
