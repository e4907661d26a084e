"""The networks of a StableDiffusion-shaped model on ONNX Runtime: words to embeddings, one denoising pass, the VAE.

The folder holds a diffusers pipeline, an `outbid.json` and in `onnx/` the graphs that `tools/emoji/export_onnx.py`
wrote. The graphs have no weights of their own: they are read from the pipeline's safetensors files.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from outbid_capabilities.image.onnx_schedule import Scheduler
from outbid_capabilities.runner_kit import Progress, RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from outbid_capabilities.image.engine import Picture
    from outbid_capabilities.image.onnx_noise import Latents

_GRAPHS = {
    "text_encoder": ("text_encoder/model.safetensors", ""),
    "unet": ("unet/diffusion_pytorch_model.safetensors", ""),
    "vae_decoder": ("vae/diffusion_pytorch_model.safetensors", "decoder."),
    "vae_encoder": ("vae/diffusion_pytorch_model.safetensors", "encoder."),
}
"""Name of the graph: (file of its weights, how their names begin)."""

WORK_MIB = 256.0
"""For one pass; more pictures than fit are computed one part after the other."""

MAX_ROWS = 64
"""Of one pass. More gain nothing on a CPU, and a cancelled job should not wait long."""

KEEP_PLACES = 32 * 32
"""Up to this size of latents ONNX Runtime keeps its work memory from pass to pass; after larger ones it returns it."""

_NO_SPINNING = ("session.intra_op.allow_spinning", "0")
"""A thread that waits for its fellows sleeps. Where other programs use the cores too, one that spins takes the time
from those it waits for: 1.1 s a picture instead of 0.17 (two cores, load 11)."""

_SHRINK = ("memory.enable_memory_arena_shrinkage", "cpu:0")


class OnnxModel:
    """One thread may use it. Arrays are float32, pictures in a batch first."""

    def __init__(self, folder: Path, threads: int, progress: Progress) -> None:
        """Raises RunError where the folder is not one for this engine, or a file is broken."""
        if not (folder / "outbid.json").is_file() or not (folder / "onnx").is_dir():
            raise RunError(f"{folder} has no ONNX graphs; it needs the engine diffusers", "runner_unavailable")
        try:
            self.defaults = _json(folder / "outbid.json")
            self.scheduler = Scheduler(_json(folder / "scheduler" / "scheduler_config.json"))
            vae = _json(folder / "vae" / "config.json")
            self._scaling = float(vae["scaling_factor"])
            self.latent_factor = 2 ** (len(vae["block_out_channels"]) - 1)
            self.channels = int(vae["latent_channels"])
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
            self._sessions = {}
            for n, name in enumerate(_GRAPHS):
                progress(0.2 + 0.5 * n / len(_GRAPHS), f"loading the {name.replace('_', ' ')}")
                self._sessions[name] = _session(folder, name, threads)
        except RunError:
            raise
        except Exception as error:  # of the native libraries, which have no common class
            raise RunError(f"the model in {folder} cannot be loaded: {error}", "runner_unavailable") from error
        _trim()

    def encode_words(self, texts: Sequence[str]) -> tuple[Latents, bool]:
        """(embeddings, whether a text was longer than the model reads)."""
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = np.array([one.ids for one in encoded], np.int64)
        return self._run("text_encoder", {"input_ids": ids}), any(one.overflowing for one in encoded)

    def denoise(self, latents: Latents, timesteps: Sequence[int], words: Latents) -> Latents:
        """One pass of the UNet; no more rows than `rows` says."""
        times = np.array(timesteps, np.int64)
        return self._run("unet", {"sample": latents, "timestep": times, "encoder_hidden_states": words})

    def decode(self, latents: Latents) -> list[Picture]:
        part = rows(*latents.shape[2:])
        return [picture for n in range(0, len(latents), part) for picture in self._decode(latents[n : n + part])]

    def _decode(self, latents: Latents) -> list[Picture]:
        values = self._run("vae_decoder", {"x": latents / np.float32(self._scaling)})
        bytes_ = np.rint((values.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
        return list(np.ascontiguousarray(bytes_.transpose(0, 2, 3, 1)))

    def encode(self, picture: Picture) -> Latents:
        values = picture.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(127.5) - 1
        return self._run("vae_encoder", {"x": values}) * np.float32(self._scaling)

    def _run(self, name: str, inputs: Mapping[str, NDArray[Any]]) -> Latents:
        options = ort.RunOptions()
        if max(math.prod(value.shape[2:]) for value in inputs.values()) > KEEP_PLACES:
            options.add_run_config_entry(*_SHRINK)
        found: Latents = self._sessions[name].run(None, dict(inputs), options)[0]
        return found


def default_threads() -> int:
    """Cores this process may use; beyond 8 so small a model gains nothing."""
    able = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, able)


def rows(height: int, width: int) -> int:
    """How many latents of this size to compute in one pass."""
    return int(max(1, min(MAX_ROWS, WORK_MIB // row_mib(height, width))))


def row_mib(height: int, width: int) -> float:
    """What one pass takes for each latent: maps of features, and attention between all places at half the size.

    Measured with the emoji model: 3.4 MiB at 16x16, 650 at 128x128.
    """
    places = height * width
    return (13_000 * places + 40 * (places / 4) ** 2) / 2**20


def _session(folder: Path, name: str, threads: int) -> ort.InferenceSession:
    file, prefix = _GRAPHS[name]
    weights = {key: value for key, value in load_file(folder / file).items() if key.startswith(prefix)}
    values = [ort.OrtValue.ortvalue_from_numpy(value.astype(np.float32)) for value in weights.values()]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry(*_NO_SPINNING)
    options.add_external_initializers(list(weights), values)
    graph = folder / "onnx" / f"{name}.onnx"
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _trim() -> None:
    """Have glibc return what loading took and freed: 106 MiB resident instead of 173. Others have no such call."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _json(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise RunError(f"{path} is not a JSON map", "runner_unavailable")
    return found
