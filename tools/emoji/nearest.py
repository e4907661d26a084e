"""Is a drawn emoji the right one? The measure: which training picture is nearest to it, at 16 x 16 pixels.

Mean over 4 x 4 pixels, Euclidean distance, the mirror image counts too (training mirrors a quarter of its pictures).
The small pictures of all training emoji are one PNG (`tests/data/emoji-16px.png`, in the order of `captions.json`, 24
in a row), so that neither font nor torch is needed to judge:

    python tools/emoji/nearest.py            write that PNG again (needs the font)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

REFERENCES = Path(__file__).resolve().parents[2] / "tests" / "data" / "emoji-16px.png"
CAPTIONS = Path(__file__).with_name("captions.json")
SMALL = 16
ROW = 24


def labels() -> list[str]:
    return [entry["label"] for entry in json.loads(CAPTIONS.read_text("utf-8"))]


def small(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mean over blocks: any square whose side is a multiple of 16, to 16 x 16 x 3."""
    block = picture.shape[0] // SMALL
    blocks = picture[: SMALL * block, : SMALL * block].reshape(SMALL, block, SMALL, block, 3)
    return np.asarray(blocks.mean(axis=(1, 3)).round(), dtype=np.uint8)


class References:
    """All training pictures, small, and mirrored beside them."""

    def __init__(self, file: Path = REFERENCES) -> None:
        self.labels = labels()
        mosaic = np.asarray(Image.open(file).convert("RGB"))
        tiles = [mosaic[y : y + SMALL, x : x + SMALL] for y, x in map(_place, range(len(self.labels)))]
        plain = np.stack(tiles).astype(np.float32)
        self._plain, self._mirrored = _flat(plain), _flat(plain[:, :, ::-1])

    def ranking(self, picture: NDArray[np.uint8]) -> list[str]:
        """The labels, the nearest first."""
        wanted = small(picture).astype(np.float32).reshape(1, -1)
        plain = ((self._plain - wanted) ** 2).sum(axis=1)
        mirrored = ((self._mirrored - wanted) ** 2).sum(axis=1)
        return [self.labels[n] for n in np.minimum(plain, mirrored).argsort(kind="stable")]


def write_references(pictures: Sequence[NDArray[np.uint8]], file: Path = REFERENCES) -> None:
    rows = -(-len(pictures) // ROW)
    mosaic = np.full((rows * SMALL, ROW * SMALL, 3), 255, dtype=np.uint8)
    for n, picture in enumerate(pictures):
        y, x = _place(n)
        mosaic[y : y + SMALL, x : x + SMALL] = small(picture)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mosaic).save(file, optimize=True)


def _place(n: int) -> tuple[int, int]:
    return n // ROW * SMALL, n % ROW * SMALL


def _flat(tiles: NDArray[Any]) -> NDArray[Any]:
    return tiles.reshape(len(tiles), -1)


if __name__ == "__main__":
    import data

    write_references([emoji.picture for emoji in data.load()])
    print(f"{REFERENCES}: {len(labels())} pictures")
