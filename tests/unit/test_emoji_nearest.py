"""The measure by which drawn emoji are judged (tools/emoji/nearest.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "emoji"))
import nearest

Picture = NDArray[np.uint8]


def _enlarged(tile: Picture) -> Picture:
    return tile.repeat(4, axis=0).repeat(4, axis=1)


def _tile(references: nearest.References, n: int) -> Picture:
    return np.asarray(references._plain[n].reshape(16, 16, 3), dtype=np.uint8)


def test_every_training_picture_is_nearest_to_itself_also_mirrored() -> None:
    references = nearest.References()
    assert len(references.labels) == len(set(references.labels)) == 480
    for n in range(0, 480, 7):
        picture = _enlarged(_tile(references, n))
        assert references.ranking(picture)[0] == references.labels[n]
        assert references.ranking(picture[:, ::-1])[0] == references.labels[n]


def test_another_emoji_is_another_answer() -> None:
    references = nearest.References()
    apple, heart = references.labels.index("red apple"), references.labels.index("blue heart")
    ranking = references.ranking(_enlarged(_tile(references, heart)))
    assert ranking[0] == "blue heart"
    assert ranking.index("red apple") > 0
    assert references.ranking(_enlarged(_tile(references, apple)))[0] == "red apple"


def test_a_small_picture_is_the_mean_of_its_blocks() -> None:
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    picture[:2, :4] = 200  # half of the first block
    small = nearest.small(picture)
    assert small.shape == (16, 16, 3)
    assert small[0, 0].tolist() == [100, 100, 100]
    assert small[1:].max() == 0
