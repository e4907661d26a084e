"""Draw tests/data/image_references with diffusers: what the engine without torch is compared with.

    python tools/emoji/references.py

`cases.json` says what; the pictures go to `pictures.png` side by side. A case with a `strength` edits the first one,
with a `mask` only its right half.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "capabilities/outbid_capabilities/image/emoji"
REFERENCES = ROOT / "tests/data/image_references"
SIDE = 64

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-a": EulerAncestralDiscreteScheduler,
}


def main() -> None:
    plain = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
    settings = plain.scheduler.config
    first: Image.Image | None = None
    drawn = []
    for case in json.loads((REFERENCES / "cases.json").read_text(encoding="utf-8")):
        plain.register_modules(scheduler=SCHEDULERS[case["scheduler"]].from_config(settings))
        picture = draw(plain, case, first)
        first = first or picture
        drawn.append(np.asarray(picture))
    Image.fromarray(np.concatenate(drawn, axis=1)).save(REFERENCES / "pictures.png", optimize=True)


def draw(plain: Any, case: dict[str, Any], first: Image.Image | None) -> Image.Image:
    asked = {
        "prompt": case["prompt"],
        "negative_prompt": case.get("negative_prompt", ""),
        "num_inference_steps": case["steps"],
        "guidance_scale": case["guidance"],
        "generator": torch.Generator("cpu").manual_seed(case["seed"]),
    }
    pipeline = plain
    more: dict[str, Any] = {"width": SIDE, "height": SIDE}
    if "mask" in case:
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[:, SIDE // 2 :] = 255
        pipeline = StableDiffusionInpaintPipeline(**plain.components, requires_safety_checker=False)
        more |= {"image": first, "mask_image": Image.fromarray(mask), "strength": case["strength"]}
    elif "strength" in case:
        pipeline = StableDiffusionImg2ImgPipeline(**plain.components, requires_safety_checker=False)
        more = {"image": first, "strength": case["strength"]}
    found: Image.Image = pipeline(**asked, **more).images[0]
    return found


if __name__ == "__main__":
    main()
