"""The training script (tools/emoji) goes on from the published weights and leaves a pipeline that draws."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
torch = pytest.importorskip("torch")
sys.path.insert(0, str(ROOT / "tools" / "emoji"))

FEW_STEPS = """
import sys
from pathlib import Path
import numpy as np, torch
from diffusers import DiffusionPipeline
from clock import Clock
from data import Emoji
from nearest import References
from train import PUBLISHED, Training

torch.manual_seed(0)
torch.set_num_threads(1)
names = References()
tiles = names._plain.reshape(-1, 16, 16, 3).astype(np.uint8)
emoji = [Emoji(names.labels[n], ("round",), "1F600", tiles[n].repeat(4, 0).repeat(4, 1)) for n in range(12)]
pipeline = DiffusionPipeline.from_pretrained(PUBLISHED, dtype=torch.float32)
before = {name: p.detach().clone() for name, p in pipeline.unet.named_parameters()}
training = Training(pipeline, emoji, torch.device("cpu"))
losses = training.run(Clock("diffusion", steps=3), rate=1e-4)
moved = sum(not torch.equal(p, before[name]) for name, p in pipeline.unet.named_parameters())
print("losses", *losses)
print("moved", moved, "of", len(before))
training.save(Path(sys.argv[1]))
again = DiffusionPipeline.from_pretrained(sys.argv[1], dtype=torch.float32)
again.set_progress_bar_config(disable=True)
image = again("red apple", num_inference_steps=2, width=64, height=64).images[0]
print("size", *image.size)
"""


@pytest.mark.model
def test_training_goes_on_from_the_published_weights_and_leaves_a_pipeline_in_fp16(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FEW_STEPS, str(tmp_path / "model")]
    done = subprocess.run(command, cwd=ROOT / "tools" / "emoji", capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line[:5] in ("losse", "moved", "size "))
    losses = [float(word) for word in told["losses"].split()]
    assert len(losses) == 3
    assert all(math.isfinite(loss) and loss < 0.6 for loss in losses)  # untrained weights start at about 1
    assert told["size"] == "64 64"
    moved, _, all_of_them = told["moved"].split()
    assert int(moved) > 0.9 * int(all_of_them)
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size < 15_000_000  # two bytes a parameter
    assert not list(tmp_path.rglob("*.bin"))


def test_captions_are_names_tags_or_nothing_in_the_shares_that_are_declared() -> None:
    from data import Emoji
    from train import UNNAMED, caption

    random.seed(3)
    apple = Emoji("red apple", ("fruit", "food"), "1F34E", None)  # type: ignore[arg-type]
    made = [caption(apple) for _ in range(3000)]
    assert abs(made.count("") / len(made) - UNNAMED) < 0.03
    assert all(not text or {"red", "fruit", "food"} & set(text.split()) for text in made)
    assert 0.75 < sum("red apple" in text for text in made) / len(made) < 0.82
