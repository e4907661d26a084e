"""How a picture looks while it is being drawn: cheap pictures from latents.

A tiny VAE decodes them in milliseconds. For others a linear map from latents to colours is good enough to watch, and
each VAE's own map is fitted by least squares to what its encoder makes of a colourful test picture, so no table of
known models is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

SIDE = 128
"""Pixels of the test picture, or as many as give 16 x 16 latents."""


class Previewer:
    """For one VAE. `pictures` gives None where there is no way to show these latents."""

    def __init__(self, pipe: Any) -> None:
        self._vae: Any = getattr(pipe, "vae", None)
        self._tiny = type(self._vae).__name__ == "AutoencoderTiny"
        self._map: torch.Tensor | None = None
        self._useless = self._vae is None

    def picture(self, pipe: Any, latents: torch.Tensor, width: int, height: int) -> NDArray[np.uint8] | None:
        """Of the first sample in `latents`: as large as the picture by a tiny VAE, else a pixel for each latent."""
        if self._useless:
            return None
        try:
            raw = self._raw(pipe, latents[:1], width, height)
            return _bytes(self._decode(raw) if self._tiny else self._colours(raw))
        except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError):
            self._useless = True  # an unusual VAE: no previews, the picture itself comes all the same
            return None

    def _raw(self, pipe: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """The latents as the VAE knows them, four-dimensional: one frame of a film, unpacked where they are packed."""
        if latents.ndim == 3:
            latents = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
        if latents.ndim == 5:
            latents = latents[:, :, latents.shape[2] // 2]
        config = self._vae.config
        scale = float(getattr(config, "scaling_factor", 1.0) or 1.0)
        return latents.to(self._vae.dtype) / scale + float(getattr(config, "shift_factor", 0.0) or 0.0)

    def _decode(self, raw: torch.Tensor) -> torch.Tensor:
        return self._vae.decode(raw, return_dict=False)[0][0]

    def _colours(self, raw: torch.Tensor) -> torch.Tensor:
        if self._map is None:
            self._map = self._fit()
        flat = raw[0].float().flatten(1).T
        ones = torch.ones(len(flat), 1, device=flat.device)
        return (torch.cat([flat, ones], 1) @ self._map).T.reshape(3, *raw.shape[2:])

    def _fit(self) -> torch.Tensor:
        """(channels + 1) x 3. The test picture is noise of 8 x 8 colours, smoothly enlarged."""
        few = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        test = torch.nn.functional.interpolate(few, size=(SIDE, SIDE), mode="bicubic").clamp(-1, 1)
        coded = self._vae.encode(test.to(self._vae.device, self._vae.dtype), return_dict=False)[0]
        latents = (coded.mode() if hasattr(coded, "mode") else coded).float()
        colours = torch.nn.functional.interpolate(test, size=latents.shape[2:], mode="area")
        flat = latents[0].flatten(1).T.cpu()
        known = torch.cat([flat, torch.ones(len(flat), 1)], 1)
        return torch.linalg.lstsq(known, colours[0].flatten(1).T).solution.to(latents.device)


def _bytes(picture: torch.Tensor) -> NDArray[np.uint8]:
    """Three channels from -1 to 1 as height x width x 3."""
    scaled = ((picture.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    found: NDArray[np.uint8] = scaled.permute(1, 2, 0).cpu().numpy()
    return found
