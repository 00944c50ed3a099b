"""Previews where there is no tiny decoder: each latent cell becomes one colour, by a linear map.

In: the map that ``data.linear_rgb`` fitted, and latents. Out: pixels, blurred as a stride of 32 is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from simpletuner.models.base import signal_to_noise


@dataclass(slots=True)
class LinearDecoder:
    """Latents → colours.

    Attributes:
        weights: [C + 1, 3]; the last row is the bias.
        stride: Pixels per latent cell: how much is enlarged, bicubic.
        name: For messages.
    """

    weights: torch.Tensor
    stride: int
    name: str = "a linear map of latents to colours"

    @torch.no_grad()
    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, C, h, w] scaled latents → [B, 3, h * stride, w * stride] in [-1, 1], float32."""
        weights = self.weights.to(latents.device)
        colours = torch.einsum("bchw,cd->bdhw", latents.float(), weights[:-1]) + weights[-1][:, None, None]
        larger = torch.nn.functional.interpolate(colours.clamp(-1, 1), scale_factor=self.stride, mode="bicubic")
        return larger.clamp(-1, 1)

    def fit(self, latents: torch.Tensor, pixels: torch.Tensor) -> float:
        """Nothing is open: only the signal-to-noise ratio in dB."""
        return signal_to_noise(self(latents), pixels)

    def to(self, device: torch.device) -> LinearDecoder:
        """Move the map; returns itself."""
        self.weights = self.weights.to(device)
        return self
