"""diffusers called directly, with nothing of Outbid around it: a helper process for the subset `images`.

python -m outbid_bench.image_engine FOLDER THREADS
"""

from __future__ import annotations

import importlib
import io
import sys
import time
from collections.abc import Callable
from typing import Any

from outbid_bench.processes import serve_lines


def main(folder: str, threads: int) -> None:
    torch, diffusers = importlib.import_module("torch"), importlib.import_module("diffusers")
    torch.set_num_threads(threads)
    diffusers.utils.logging.set_verbosity_error()
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def draw(asked: dict[str, Any]) -> dict[str, Any]:
        """As its users call it: `prompts` in one batch each, one call after the other; with `preview_every`, decoded
        on the way.
        """
        begun, first_s, shown_s = time.perf_counter(), 0.0, list[float]()
        for batch in asked["batches"]:
            generators = [torch.Generator().manual_seed(seed) for _, seed in batch]
            pipeline(
                [prompt for prompt, _ in batch],
                num_inference_steps=asked["steps"],
                guidance_scale=asked["guidance"],
                width=64,
                height=64,
                generator=generators,
                callback_on_step_end=_previews(asked.get("preview_every", 0), begun, shown_s),
            )
            first_s = first_s or time.perf_counter() - begun
        return {"total_s": time.perf_counter() - begun, "first_s": first_s, "shown_s": shown_s}

    serve_lines({}, draw)


def _previews(every: int, begun: float, shown_s: list[float]) -> Callable[..., dict[str, Any]] | None:
    """Latents decoded by the pipeline's own VAE, as diffusers' documentation shows it, to a JPEG; `shown_s` gets the
    seconds from `begun` until each was there.
    """

    def shown(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if (step + 1) % every == 0:
            scaled = tensors["latents"] / pipeline.vae.config.scaling_factor
            pictures = pipeline.image_processor.postprocess(pipeline.vae.decode(scaled, return_dict=False)[0].detach())
            pictures[0].save(io.BytesIO(), "JPEG")
            shown_s.append(time.perf_counter() - begun)
        return tensors

    return shown if every else None


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
