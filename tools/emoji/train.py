"""Train the emoji model: latent diffusion, 64 x 64, from the names of Noto's emoji.

    python tools/emoji/train.py --minutes 60 --out DIR                     go on from the published weights
    python tools/emoji/train.py --emojibase data.json --minutes 240 …      with all emoji of one code point (some 1,370)
    python tools/emoji/train.py --scratch --minutes 100 --out DIR          all anew, tokenizer and autoencoder too

The method: v-prediction with zero terminal SNR and trailing timesteps (Lin et al. 2024, arXiv:2305.08891), min-SNR
weights (Hang et al. 2023, arXiv:2303.09556), an exponential moving average of the weights, captions left out in 10 %
for classifier-free guidance. The published weights took 103 minutes on two shared cores (4,843 steps of 64). Needs the
extra `image` and `pip install fonttools`; a GPU is used where there is one. The same seed and steps give the same
weights on the same machine. `evaluate.py` judges the result.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import autoencoder
import tokenizer as tokenizers
from clock import Clock
from data import FONT, Emoji, load

PUBLISHED = Path(__file__).resolve().parents[2] / "capabilities/outbid_capabilities/image/emoji"
BATCH = 64
LEARNING_RATE = 1.2e-3
WIDTH = 192
"""Of the text encoder."""

UNNAMED, BY_NAME, WITH_TAGS = 0.10, 0.70, 0.88
"""A caption is left out below the first, the name (in a phrase) up to the second, name and tags up to the third, else
tags."""

PHRASES = ("{}", "{}", "{}", "{}", "a {}", "{} emoji", "an emoji of {}", "a picture of a {}", "{} icon")


def caption(emoji: Emoji) -> str:
    chance = random.random()
    if chance < UNNAMED:
        return ""
    tags = random.sample(emoji.tags, len(emoji.tags))
    if chance < BY_NAME:
        return random.choice(PHRASES).format(emoji.label)
    if chance < WITH_TAGS:
        return " ".join([emoji.label, *tags[: random.randint(1, 3)]])
    return " ".join(tags[: random.randint(1, 4)]) or emoji.label


def new_pipeline(emoji: Sequence[Emoji], folder: Path, clock: Clock, device: torch.device) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = tokenizers.train(emoji, folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    return StableDiffusionPipeline(
        vae=autoencoder.train(emoji, clock, device),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


class Training:
    def __init__(self, pipeline: Any, emoji: Sequence[Emoji], device: torch.device) -> None:
        self.pipeline, self.emoji, self.device = pipeline, emoji, device
        self.unet, self.text = pipeline.unet.train(), pipeline.text_encoder.train()
        self.alphas = pipeline.scheduler.alphas_cumprod.to(device)
        pictures = torch.from_numpy(np.stack([one.picture for one in emoji])).permute(0, 3, 1, 2)
        scale = pipeline.vae.config.scaling_factor
        self.latents = autoencoder.encode(pipeline.vae, pictures, device) * scale
        self.mirrored = autoencoder.encode(pipeline.vae, pictures.flip(-1), device) * scale
        self.parameters = [*self.unet.parameters(), *self.text.parameters()]
        self.average = [parameter.detach().clone() for parameter in self.parameters]

    def run(self, clock: Clock, *, rate: float = LEARNING_RATE) -> list[float]:
        """Returns the loss of each step."""
        optimizer = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
        losses: list[float] = []
        for step in clock:
            for group in optimizer.param_groups:
                group["lr"] = rate * _schedule(step, clock.part)
            loss = self._loss()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            optimizer.step()
            keep = min(0.999, (1 + step) / (20 + step))
            with torch.no_grad():
                torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - keep)
            losses.append(loss.item())
            clock.tell(lambda: f"loss {np.mean(losses[-50:]):.4f}")
        return losses

    def _loss(self) -> torch.Tensor:
        chosen = torch.randint(0, len(self.emoji), (BATCH,))
        mirror = (torch.rand(BATCH) < 0.25)[:, None, None, None]
        clean = torch.where(mirror, self.mirrored[chosen], self.latents[chosen]).to(self.device)
        at = torch.randint(0, len(self.alphas), (BATCH,), device=self.device)
        alpha = self.alphas[at][:, None, None, None]
        noise = torch.randn_like(clean)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            words = self.text(self._tokens(chosen.tolist()))[0]
            found = self.unet(noisy, at, words).sample.float()
        snr = (alpha / (1 - alpha + 1e-8)).flatten()
        weight = snr.clamp(max=5) / (snr + 1) + 0.2
        return (weight * ((found - velocity) ** 2).mean((1, 2, 3))).mean()

    def _tokens(self, chosen: Sequence[int]) -> torch.Tensor:
        texts = [caption(self.emoji[n]) for n in chosen]
        tokenizer = self.pipeline.tokenizer
        length = tokenizer.model_max_length
        made = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids: torch.Tensor = made.input_ids.to(self.device)
        return ids

    def save(self, folder: Path) -> None:
        """The average of the weights, as a pipeline in fp16."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.data.copy_(average)
        for part in (self.unet, self.text, self.pipeline.vae):
            part.to("cpu", torch.float16)
        self.pipeline.save_pretrained(folder, safe_serialization=True)


def _schedule(step: int, part: float) -> float:
    """Up in 200 steps, level for the first half, then down by half a cosine."""
    down = 1.0 if part < 0.5 else 0.49 * (1 + math.cos(2 * math.pi * (part - 0.5))) + 0.02
    return min(1.0, step / 200) * down


def main() -> None:
    given = _arguments()
    random.seed(given.seed)
    np.random.seed(given.seed)
    torch.manual_seed(given.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    emoji = load(given.font, given.emojibase)
    print(f"{len(emoji)} emoji, on {device}")
    long = {"steps": given.steps} if given.steps else {"minutes": given.minutes or 60.0}
    if given.scratch:
        pipeline = new_pipeline(emoji, given.out, Clock("autoencoder", **_part(long, 0.2)), device)
    else:
        from diffusers import DiffusionPipeline

        pipeline = DiffusionPipeline.from_pretrained(given.start, torch_dtype=torch.float32)
    training = Training(pipeline.to(device), emoji, device)
    training.run(Clock("diffusion", **long), rate=LEARNING_RATE if given.scratch else 0.75 * LEARNING_RATE)
    training.save(given.out)
    print(f"saved in {given.out}; judge it: python tools/emoji/evaluate.py --model {given.out}")


def _part(long: dict[str, Any], part: float) -> dict[str, Any]:
    return {name: type(value)(max(1, value * part)) for name, value in long.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the new pipeline")
    parser.add_argument("--start", type=Path, default=PUBLISHED, help="pipeline to go on from")
    parser.add_argument("--scratch", action="store_true", help="start from nothing")
    parser.add_argument("--minutes", type=float, help="how long (default 60)")
    parser.add_argument("--steps", type=int, help="how many steps, in place of minutes")
    parser.add_argument("--emojibase", type=Path, help="emojibase-data's en/data.json: learn all emoji")
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
