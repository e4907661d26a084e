"""Write the ONNX graphs of a StableDiffusion-shaped pipeline, without its weights, and the check sums of `outbid.json`.

    python tools/emoji/export_onnx.py FOLDER [--hashes]

FOLDER is a diffusers pipeline (unet, vae, text_encoder in safetensors) with an `outbid.json`. The graphs go to
FOLDER/onnx; their weights stay where they are: each initializer has the name of a tensor in the safetensors file, and
the engine hands it over when it loads. New weights of the same shapes need no new graphs: `--hashes` writes the SHA-256
sums alone.

Needs torch, diffusers, transformers, onnx and onnxscript.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    import onnx_ir

OPSET = 18
ENDLESS = 16
"""More upsampling steps than any UNet has: no size is then a multiple of 2**steps, and diffusers takes the path that
upsamples to the size of the skip connection, which is right for every size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hashes", action="store_true", help="leave the graphs, write the check sums")
    arguments = parser.parse_args()
    if not arguments.hashes:
        export(arguments.folder)
    write_hashes(arguments.folder)


def export(folder: Path) -> None:
    """Export text encoder, UNet and both halves of the autoencoder. Batch, height and width are free."""
    import torch
    from diffusers import AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    unet.num_upsamplers = ENDLESS
    vae = AutoencoderTiny.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    text = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    length, width = text.config.max_position_embeddings, text.config.hidden_size
    channels = unet.config.in_channels
    latents = torch.randn(2, channels, 18, 14)
    words = torch.randn(2, length, width)
    pixels = torch.randn(2, 3, 72, 56)
    ids = torch.zeros(2, length, dtype=torch.long)
    write = _Writer(folder / "onnx")
    write("text_encoder", text, text.forward, {"input_ids": ids}, "embeddings")
    inputs = {"sample": latents, "timestep": torch.tensor([5, 5]), "encoder_hidden_states": words}
    write("unet", unet, unet.forward, inputs, "prediction")
    write("vae_decoder", vae, vae.decode, {"x": latents}, "pixels")
    write("vae_encoder", vae, vae.encode, {"x": pixels}, "latents")


class _Writer:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def __call__(self, name: str, model: Any, forward: Any, inputs: dict[str, Any], output: str) -> None:
        """`inputs` are examples, by the names of `forward`'s parameters."""
        import onnx

        graph = _graph(model, forward, inputs, output)
        graph.producer_version = ""  # the same graph from another version of torch is the same file
        path = self._folder / f"{name}.onnx"
        onnx.save(graph, path)
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB, {len(graph.graph.node)} nodes")


def _graph(model: Any, forward: Any, inputs: dict[str, Any], output: str) -> onnx.ModelProto:
    import torch
    from onnxscript import optimizer

    class Call(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any) -> Any:
            return forward(**dict(zip(inputs, values, strict=True)), return_dict=False)[0]

    dynamic = torch.export.Dim.DYNAMIC
    free = tuple({axis: dynamic for axis in (0, 2, 3) if axis < value.dim()} for value in inputs.values())
    for n, value in enumerate(inputs.values()):
        if value.dim() == 3:  # the words: their number is the model's
            free[n].pop(2)
    program = torch.onnx.export(
        Call().eval(),
        tuple(inputs.values()),
        input_names=list(inputs),
        output_names=[output],
        dynamic_shapes=(free,),
        dynamo=True,
        optimize=False,  # it would fold weights into tensors of other names
        opset_version=OPSET,
        verbose=False,
    )
    weights = {f"model.{name}" for name in model.state_dict()}
    optimizer.optimize_ir(program.model, should_fold=lambda node: None if weights.isdisjoint(_names(node)) else False)
    return _without_weights(program.model_proto, weights)


def _names(node: onnx_ir.Node) -> list[str]:
    return [value.name or "" for value in node.inputs if value is not None]


def _without_weights(graph: onnx.ModelProto, weights: set[str]) -> onnx.ModelProto:
    """Weights become initializers whose data lie elsewhere, named as in the safetensors file; remarks go."""
    import onnx

    for tensor in graph.graph.initializer:
        if tensor.name in weights:
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="weights")
            tensor.name = tensor.name.removeprefix("model.")
    for node in graph.graph.node:
        node.input[:] = [name.removeprefix("model.") if name in weights else name for name in node.input]
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    graph.graph.ClearField("value_info")
    graph.graph.ClearField("metadata_props")
    graph.ClearField("metadata_props")
    for described in (*graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        described.ClearField("metadata_props")
    return graph


def write_hashes(folder: Path) -> None:
    """The SHA-256 sums of all weights and graphs, which a runner compares before it loads them."""
    path = folder / "outbid.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    told["sha256"] = {str(file.relative_to(folder).as_posix()): sha256(file) for file in checked(folder)}
    path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def checked(folder: Path) -> Sequence[Path]:
    return sorted((*folder.rglob("*.safetensors"), *folder.rglob("*.onnx")))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
