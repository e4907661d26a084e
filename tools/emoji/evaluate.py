"""How many captions give the right picture, asked through a mesh: top-1 of the nearest training picture (`nearest.py`).

    outbid up &                                            a node with the extra image or image-lite
    python tools/emoji/evaluate.py                         all 480 captions, 8 steps
    python tools/emoji/evaluate.py --model NAME --captions 96 --steps 20 --scheduler dpm++2m

Prints one line per wrong picture and the share of right ones; exit code 1 below 99 %.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nearest import References
from outbid import Mesh

AIM = 0.99
AT_ONCE = 8
SEED = 100
"""That of the first caption; the next one's is one more."""


async def draw(mesh: Mesh, prompt: str, params: Mapping[str, Any]) -> NDArray[np.uint8]:
    reply = await mesh.run("image.generate", {"prompt": prompt, "metadata": False, "preview_every": 0, **params})
    picture = Image.open(io.BytesIO(reply["images"][0]["data"])).convert("RGB")
    return np.asarray(picture, dtype=np.uint8)


async def wrong_ones(
    mesh: Mesh, captions: Sequence[str], params: Mapping[str, Any], references: References
) -> dict[str, list[str]]:
    """The captions whose picture is nearest to another emoji's, with the five nearest."""
    at_once = asyncio.Semaphore(AT_ONCE)

    async def judge(number: int, caption: str) -> tuple[str, list[str]]:
        async with at_once:
            picture = await draw(mesh, caption, {"seed": SEED + number, **params})
        return caption, references.ranking(picture)[:5]

    judged = await asyncio.gather(*(judge(n, caption) for n, caption in enumerate(captions)))
    return {caption: near for caption, near in judged if near[0] != caption}


async def main(given: argparse.Namespace) -> int:
    references = References()
    captions = references.labels
    if given.captions:
        captions = random.Random(1).sample(captions, given.captions)
    asked = {"model": given.model, "steps": given.steps, "guidance": given.guidance, "scheduler": given.scheduler}
    params = {name: value for name, value in asked.items() if value is not None}
    began = time.monotonic()
    async with Mesh(state=given.state) as mesh:
        wrong = await wrong_ones(mesh, captions, params, references)
    took_s = time.monotonic() - began
    for caption, near in wrong.items():
        print(f"{caption}: nearest are {', '.join(near)}")
    share = 1 - len(wrong) / len(captions)
    print(f"{share:.1%} of {len(captions)} right; {len(captions) / took_s:.1f} images/s through the mesh")
    return 0 if share >= AIM else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--captions", type=int, help="so many, chosen at random (always the same)")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--scheduler")
    parser.add_argument("--state", help="state folder of the node to ask")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(asyncio.run(main(_arguments())))
