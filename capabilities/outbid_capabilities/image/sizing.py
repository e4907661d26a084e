"""How much memory a diffusion model takes and how long a step of it may last. Pure arithmetic, no measurements."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

BASE_MIB = {"diffusers": 450.0, "onnx": 150.0}
"""Interpreter and libraries, without a graphics card (measured on Linux: 490 and 200 MiB with the packaged model)."""

CUDA_HOST_MIB = 800.0
"""What CUDA's libraries take of the machine's memory beside."""

CUDA_BASE_MIB = 500.0
"""What CUDA's context and kernels take of the card."""

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}

DENOISE_BYTES = 80.0
"""Per byte of number and latent pixel, times channels: the skip connections and the widest feed-forward layer of a
U-Net, twice (with and without the words). 320 channels of SD 1.5 at 64x64 in half precision: 0.2 GiB."""
LATENT_CHANNELS = 320

DECODE_VALUES = 256 * 3
"""Per pixel, while the VAE decodes: three maps of 256 channels at full size; 0.8 GiB for 512x512 in float32.
One picture of a batch is decoded at a time.
"""

FLOP_PER_PARAMETER = 7_000.0
"""Per million pixels and step, at eight pixels per latent: SD 1.5 has 7,100 (1.6 TFLOP a step at 512x512, both passes),
SDXL 4,400, a transformer of 2x2 patches 7,800."""

CPU_FLOPS = 30e9
"""Of one core: about half of what AVX2 could do."""
GPU_FLOPS = 30e12


def device_of(settings: Mapping[str, Any], engine: str) -> str:
    """cpu, cuda or mps: where the model will be; a guess from what is installed, torch is not imported."""
    wanted = str(settings.get("device", "auto"))
    if engine != "diffusers":
        return "cpu"
    return wanted if wanted != "auto" else _best_device()


@lru_cache(maxsize=1)
def _best_device() -> str:
    if sys.platform == "darwin":
        return "mps" if sys.maxsize > 2**32 and Path("/System/Library/Frameworks/Metal.framework").exists() else "cpu"
    try:
        build = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "cpu"
    cards = Path("/proc/driver/nvidia/version").exists() or Path("C:/Windows/System32/nvcuda.dll").exists()
    return "cuda" if cards and "+cpu" not in build else "cpu"


def number_bytes(settings: Mapping[str, Any], device: str) -> int:
    """Bytes of a number the model computes with."""
    return DTYPES.get(str(settings.get("dtype", "auto")), 4 if device == "cpu" else 2)


def weights_mib(size_mib: float, info: Mapping[str, Any], bytes_each: int) -> float:
    return size_mib * bytes_each / BYTES.get(str(info.get("dtype")), 4)


def work_mib(info: Mapping[str, Any], width: int, height: int, pictures: int, bytes_each: int) -> float:
    """What drawing so many pictures in one batch takes beside the weights."""
    factor, parameters = int(info.get("latent_factor", 8)), float(info.get("parameters", 1e9))
    channels = min(LATENT_CHANNELS, max(64.0, LATENT_CHANNELS * parameters / 1e9))
    latents = width * height / factor**2
    decode = width * height * DECODE_VALUES * min(1.0, max(0.125, parameters / 1e9))
    return (latents * channels * DENOISE_BYTES * pictures + decode) * bytes_each / 2**20


def memory(found: Mapping[str, Any], settings: Mapping[str, Any], engine: str) -> tuple[float, float]:
    """(of the machine, of the graphics card) in MiB: libraries, weights in the numbers computed with, and the work on
    as many pictures of the default size as there are slots.
    """
    info = found["info"]
    device = device_of(settings, engine)
    each = number_bytes(settings, device) if engine == "diffusers" else 4
    size = info["defaults"]["width"], info["defaults"]["height"]
    model_mib = weights_mib(found["size_mib"], info, each) + work_mib(
        info, *size, int(settings.get("slots") or 4), each
    )
    base_mib = BASE_MIB[engine]
    if device == "cuda":  # the weights pass through the machine's memory, a component at a time
        return base_mib + CUDA_HOST_MIB + float(info.get("largest_mib", 0.0)), model_mib + CUDA_BASE_MIB
    return base_mib + model_mib, 0.0


def free_mib() -> float | None:
    """Memory that can be had without swapping, None where nothing tells (macOS, Windows)."""
    try:
        text = Path("/proc/meminfo").read_text()
        return int(text.partition("MemAvailable:")[2].split()[0]) / 1024
    except (OSError, ValueError, IndexError):
        return None


def prior_rates(info: Mapping[str, Any], cores: float) -> dict[str, float]:
    """Seconds per unit of `engine.units`, before anything was measured."""
    defaults = info.get("defaults", {})
    steps, mpix = int(defaults.get("steps", 30)), defaults.get("width", 512) * defaults.get("height", 512) / 1e6
    flops = GPU_FLOPS if info.get("device") in ("cuda", "mps") else CPU_FLOPS * cores
    work = float(info.get("parameters", 1e9)) * FLOP_PER_PARAMETER * (8 / int(info.get("latent_factor", 8))) ** 2
    step_s = work / flops
    return {"mpix_steps": step_s, "steps": step_s * mpix, "mpix": step_s * steps, "images": step_s * steps * mpix}
