"""A tiny autoencoder: 64 x 64 x 3 to 16 x 16 x 4 and back (diffusers' AutoencoderTiny, 0.37 million parameters).

Trained on crops, with noise on the latents in place of a KL term. 28.6 dB PSNR after some ten minutes on two cores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from clock import Clock
from data import Emoji

CHANNELS = 32
BATCH = 48
CROP = 32
NOISE = 0.05


def train(emoji: Sequence[Emoji], clock: Clock, device: torch.device) -> Any:
    """A diffusers AutoencoderTiny whose `scaling_factor` gives latents of standard deviation 1."""
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny(
        encoder_block_out_channels=(CHANNELS,) * 3,
        decoder_block_out_channels=(CHANNELS,) * 3,
        num_encoder_blocks=(1, 2, 3),
        num_decoder_blocks=(3, 2, 1),
        latent_channels=4,
        upsampling_scaling_factor=2,
        latent_magnitude=3,
    ).to(device)
    pictures = torch.from_numpy(np.stack([one.picture for one in emoji])).permute(0, 3, 1, 2)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4, betas=(0.9, 0.98))
    for step in clock:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, step / 100) * (0.49 * (1 + math.cos(math.pi * clock.part)) + 0.02)
        original = _crops(pictures).to(device)
        loss, error = _loss(vae, original)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        clock.tell(lambda: _decibels(error))  # noqa: B023 - called at once
    latents = encode(vae, pictures, device)
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    return vae.eval()


def encode(vae: Any, pictures: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Latents, not scaled. `pictures`: n x 3 x 64 x 64 bytes."""
    with torch.no_grad():
        parts = [vae.encode(part.to(device).float() / 127.5 - 1).latents.cpu() for part in pictures.split(64)]
    return torch.cat(parts)


def _decibels(error: torch.Tensor) -> str:
    return f"PSNR {10 * math.log10(4 / error.item()):.2f} dB"


def _crops(pictures: torch.Tensor) -> torch.Tensor:
    top, left = np.random.randint(0, pictures.shape[-1] - CROP + 1, 2)
    chosen = pictures[torch.randint(0, len(pictures), (BATCH,))]
    crop = chosen[:, :, top : top + CROP, left : left + CROP].float() / 127.5 - 1
    mirrored = torch.rand(BATCH) < 0.5
    crop[mirrored] = crop[mirrored].flip(-1)
    return crop


def _loss(vae: Any, original: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels, edges, and a pull of the latents towards mean 0 and deviation 1; and the mean squared error."""
    latents = vae.encode(original).latents
    drawn = vae.decode(latents + NOISE * torch.randn_like(latents)).sample
    error = ((drawn - original) ** 2).mean()
    edges = sum((a - b).abs().mean() for a, b in zip(_edges(drawn), _edges(original), strict=True))
    spread = latents.mean((0, 2, 3)).pow(2).mean() + (latents.std((0, 2, 3)) - 1).pow(2).mean()
    return (drawn - original).abs().mean() + error + 0.5 * edges + 1e-3 * spread, error.detach()


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]
