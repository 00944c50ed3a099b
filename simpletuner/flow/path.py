"""Room 6, Noise: the straight path between data and noise.

In: clean latents, noise and sigmas. Out: a NoisedBatch. Draws nothing itself: randomness is an argument.

Convention used everywhere: sigma in [0, 1] runs from data (0) to noise (1); velocity = noise - latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TIMESTEP_SCALE = 1000.0


@dataclass(frozen=True, slots=True)
class NoisedBatch:
    """What the model sees and what it must say.

    Attributes:
        noisy_latents: [B, C, h, w] float32.
        sigmas: [B] float32 in [0, 1].
        timesteps: [B] float32, 1000 * sigma: what Sana's time embedding expects.
        target: [B, C, h, w] float32, the velocity noise - latents.
    """

    noisy_latents: torch.Tensor
    sigmas: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor


def interpolate(latents: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """The point at ``sigmas`` on the line from ``latents`` to ``noise``.

    Args:
        latents: [B, ...] clean latents.
        noise: Same shape, standard normal.
        sigmas: [B] in [0, 1].

    Returns:
        (1 - sigma) * latents + sigma * noise, same shape.

    Source: rectified flow, Liu et al. 2022 (arXiv 2209.03003), eq. 1; same sign as diffusers' Sana recipe.
    """
    weight = sigmas.reshape(-1, *[1] * (latents.ndim - 1))
    return (1.0 - weight) * latents + weight * noise


def velocity(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The derivative of ``interpolate`` in sigma: noise - latents. Source: as ``interpolate``."""
    return noise - latents


def add_noise(latents: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> NoisedBatch:
    """Bundle input, time and target of one micro-batch, all float32.

    Args:
        latents: [B, C, h, w], any float dtype.
        noise: Same shape, standard normal.
        sigmas: [B] in [0, 1].
    """
    latents, noise, sigmas = latents.float(), noise.float(), sigmas.float()
    return NoisedBatch(
        noisy_latents=interpolate(latents, noise, sigmas),
        sigmas=sigmas,
        timesteps=sigmas * TIMESTEP_SCALE,
        target=velocity(latents, noise),
    )
