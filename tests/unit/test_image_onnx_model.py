"""The packaged model is whole: its check sums hold, and the graphs fit the weights they come without."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest

from outbid_capabilities import image
from outbid_capabilities.image.onnx_model import MAX_ROWS, OnnxModel, rows
from outbid_capabilities.runner_kit import RunError

EMOJI = Path(image.__file__).parent / "emoji"
OURS = json.loads((EMOJI / "outbid.json").read_text(encoding="utf-8"))

WEIGHTS = {
    "text_encoder": ("text_encoder/model.safetensors", ""),
    "unet": ("unet/diffusion_pytorch_model.safetensors", ""),
    "vae_decoder": ("vae/diffusion_pytorch_model.safetensors", "decoder."),
    "vae_encoder": ("vae/diffusion_pytorch_model.safetensors", "encoder."),
}


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with file.open("rb") as opened:
        header = json.loads(opened.read(struct.unpack("<Q", opened.read(8))[0]))
    return {name: tuple(told["shape"]) for name, told in header.items() if name != "__metadata__"}


def test_the_check_sums_are_those_of_all_weights_and_graphs() -> None:
    files = sorted((*EMOJI.rglob("*.safetensors"), *EMOJI.rglob("*.onnx")))

    found = {file.relative_to(EMOJI).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert found == OURS["sha256"]
    assert len(found) == 7


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_graph_asks_for_just_the_tensors_that_the_weights_have(name: str) -> None:
    onnx = pytest.importorskip("onnx")
    file, prefix = WEIGHTS[name]
    graph = onnx.load(EMOJI / "onnx" / f"{name}.onnx", load_external_data=False).graph

    asked = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer if tensor.data_location == 1}
    assert asked == {key: shape for key, shape in _shapes(EMOJI / file).items() if key.startswith(prefix)}


def test_weights_are_shipped_once() -> None:
    assert sum(file.stat().st_size for file in (EMOJI / "onnx").iterdir()) < 1_500_000


def test_a_folder_without_graphs_is_sent_to_diffusers(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="needs the engine diffusers"):
        OnnxModel(tmp_path, 1, lambda fraction, note: None)


def test_a_pass_takes_fewer_pictures_the_larger_they_are() -> None:
    assert rows(16, 16) == MAX_ROWS
    assert 1 < rows(32, 32) < MAX_ROWS
    assert rows(128, 128) == 1
