"""diffusers called directly, with nothing of Outbid around it: a helper process for the subset `images`.

python -m outbid_bench.image_engine FOLDER THREADS
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any

from outbid_bench.processes import serve_lines


def main(folder: str, threads: int) -> None:
    torch, diffusers = importlib.import_module("torch"), importlib.import_module("diffusers")
    torch.set_num_threads(threads)
    diffusers.utils.logging.set_verbosity_error()
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def draw(asked: dict[str, Any]) -> dict[str, Any]:
        """As its users call it: `prompts` in one batch each, one call after the other."""
        begun, first_s = time.perf_counter(), 0.0
        for batch in asked["batches"]:
            generators = [torch.Generator().manual_seed(seed) for _, seed in batch]
            pipeline(
                [prompt for prompt, _ in batch],
                num_inference_steps=asked["steps"],
                guidance_scale=asked["guidance"],
                width=64,
                height=64,
                generator=generators,
            )
            first_s = first_s or time.perf_counter() - begun
        return {"total_s": time.perf_counter() - begun, "first_s": first_s}

    serve_lines({}, draw)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
