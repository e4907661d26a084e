"""LoRAs on the diffusers engine: in force for the jobs that want them, and for no other."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

from outbid_capabilities.image.diffusers_engine import DiffusersEngine  # noqa: E402 - they need torch
from outbid_capabilities.runner_kit import RunError  # noqa: E402
from tests.integration.test_image_diffusers_support import Board, apart, batches, draw, load, one, tiny  # noqa: E402

pytestmark = pytest.mark.model

PEFT = importlib.util.find_spec("peft") is not None
needs_peft = pytest.mark.skipif(not PEFT, reason="peft is not installed")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DiffusersEngine]:
    home = tmp_path_factory.mktemp("loras")
    folder = tiny("sdxl", home / "sdxl")
    files = {name: home / f"{name}.safetensors" for name in ("ink", "other", "broken")}
    if PEFT:
        save_lora(folder, files["ink"])
    save_misfit(files["other"])
    files["broken"].write_bytes(b"\x80\x04cos\nsystem\n")
    loaded = load(folder, loras={name: str(path) for name, path in files.items()})
    yield loaded
    loaded.close()


def save_lora(folder: Path, path: Path) -> None:
    """A random one for the attention of the U-Net."""
    from diffusers import StableDiffusionXLPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = StableDiffusionXLPipeline.from_pretrained(folder)
    torch.manual_seed(1)
    pipe.unet.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    pipe.save_lora_weights(path.parent, unet_lora_layers=layers, weight_name=path.name, safe_serialization=True)


def save_misfit(path: Path) -> None:
    from safetensors.torch import save_file

    layer = "unet.nowhere.to_q.lora_"
    save_file({f"{layer}A.weight": torch.zeros(4, 8), f"{layer}B.weight": torch.zeros(8, 4)}, path)


@needs_peft
def test_jobs_with_and_without_a_lora_run_side_by_side_and_do_not_mix(
    engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = one(engine, seeds=(1,))
    requests: list[dict[str, Any]] = [{"loras": (("ink", weight),)} for weight in (1.0, 3.0)]
    alone = [one(engine, seeds=(1,), **request) for request in requests]
    assert apart(plain.pictures[0], alone[0].pictures[0]) > 2
    assert apart(alone[0].pictures[0], alone[1].pictures[0]) > 2
    seen = batches(engine, monkeypatch)
    together = draw(engine, *[Board(seeds=(1,), **request) for request in ({}, *requests, {})])
    assert max(seen) == 2, "only the two without share batches"
    for board, like in zip(together, (plain, *alone, plain), strict=True):
        assert apart(board.pictures[0], like.pictures[0]) <= 2
    assert np.array_equal(one(engine, seeds=(1,)).pictures[0], plain.pictures[0])


@needs_peft
@pytest.mark.parametrize("name", ["other", "broken"])
def test_a_lora_that_does_not_fit_is_refused_and_leaves_no_trace(engine: DiffusersEngine, name: str) -> None:
    plain = one(engine, seeds=(1,))
    with pytest.raises(RunError, match="does not fit") as caught:
        one(engine, loras=((name, 1.0),))
    assert not caught.value.retry
    assert np.array_equal(one(engine, seeds=(1,)).pictures[0], plain.pictures[0])


@pytest.mark.skipif(PEFT, reason="peft is installed")
def test_without_peft_a_lora_is_refused_with_what_to_install(engine: DiffusersEngine) -> None:
    with pytest.raises(RunError, match="pip install peft"):
        one(engine, loras=(("ink", 1.0),))
