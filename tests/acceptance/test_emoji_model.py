"""The packaged model draws what it is asked for, through a mesh (tools/emoji/evaluate.py asks for all captions)."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tests.fleet import fleet, mesh_of

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "emoji"))
from evaluate import wrong_ones
from nearest import References

CAPTIONS = 48


@pytest.mark.model
async def test_nearly_every_caption_gives_the_picture_that_is_nearest_to_its_own(tmp_path: Path) -> None:
    references = References()
    captions = random.Random(1).sample(references.labels, CAPTIONS)
    with fleet(tmp_path) as nodes:
        node = nodes.add("pi", "--set", "image.engine=onnx")
        await node.until_up()
        async with mesh_of(node) as mesh:
            wrong = await wrong_ones(mesh, captions, {}, references)
    assert len(wrong) <= CAPTIONS // 48, wrong
