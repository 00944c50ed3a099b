"""Room 6, Noise: training on something other than the plain line from data to noise.

In: latents, sigmas, a generator. Out: a NoisedBatch. With nothing switched on it is ``add_noise`` and no extra draw.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from simpletuner.flow.path import NoisedBatch, add_noise, interpolate
from simpletuner.wording import counted


@dataclass(frozen=True, slots=True)
class Perturbation:
    """What is changed on the way from noise to the model's input; 0 is off.

    Attributes:
        input_strength: gamma of the extra noise that only the model's input sees.
        input_steps: Optimizer steps over which ``input_strength`` falls to 0 linearly; 0 keeps it.
        offset: Size of a random shift of each channel of the noise.
        offset_probability: Share of samples that get the shift.
        slowed: gamma of MixFlow, in [0, 1].
    """

    input_strength: float = 0.0
    input_steps: int = 0
    offset: float = 0.0
    offset_probability: float = 1.0
    slowed: float = 0.0

    def input_strength_at(self, step: int) -> float:
        """The strength in step ``step`` (from 0)."""
        if not self.input_steps:
            return self.input_strength
        return self.input_strength * max(0.0, 1.0 - step / self.input_steps)

    def describe(self) -> list[str]:
        """Sentences for the log; none if nothing is switched on."""
        lines = []
        if self.input_strength:
            until = f", falling to 0 over {counted(self.input_steps, 'step')}" if self.input_steps else ""
            lines.append(f"input perturbation {self.input_strength:g}{until}: the target keeps the plain noise")
        if self.offset:
            lines.append(
                f"offset noise {self.offset:g} for {self.offset_probability:.0%} of samples, in the target too"
            )
        if self.slowed:
            lines.append(f"MixFlow, gamma {self.slowed:g}: inputs up to that share noisier than the model is told")
        return lines


def offset_noise(noise: torch.Tensor, strength: float, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Noise whose channel means are shifted: noise + strength * N(0, 1), one draw a channel, in a share of the samples.

    The shifted noise is the end of the path: input and target both use it. On the straight path the model sees pure
    noise at sigma 1, so the brightness leak that this was made for does not exist there; it still widens the noise
    that the model can start from.

    Args:
        noise: [B, C, h, w] standard normal.
        strength: 0.1 is usual.
        probability: In [0, 1].
        generator: Of the same device.

    Source: Guttenberg 2023, "Diffusion with offset noise" (crosslabs.org), as in diffusers' text-to-image examples.
    """
    shape, device = noise.shape[:2], noise.device
    shift = torch.randn(shape, generator=generator, device=device)
    chosen = torch.rand(shape[0], generator=generator, device=device) < probability
    return noise + strength * (shift * chosen[:, None])[:, :, None, None]


def perturb_input(noised: NoisedBatch, strength: float, generator: torch.Generator) -> NoisedBatch:
    """The model sees noise + strength * N(0, 1) at its sigma; the target keeps the plain noise.

    Source: Ning et al. 2023 (arXiv 2301.11706), algorithm 1, with their q(x_t | x_0) replaced by the straight path.
    """
    extra = torch.randn(noised.noisy_latents.shape, generator=generator, device=noised.noisy_latents.device)
    sigmas = noised.sigmas[:, None, None, None]
    return replace(noised, noisy_latents=noised.noisy_latents + strength * sigmas * extra)


def slow_sigmas(sigmas: torch.Tensor, gamma: float, generator: torch.Generator) -> torch.Tensor:
    """Slowed sigmas of MixFlow: uniform in [sigma, sigma + gamma * (1 - sigma)].

    The model is told sigma and sees the point at the slowed sigma, which is noisier: as it is while sampling, where its
    own errors make it lag behind. The target stays noise - latents.

    Args:
        sigmas: [B] in [0, 1].
        gamma: In [0, 1]; 0.4 in the example of its authors.
        generator: Of the same device.

    Source: Li et al. 2025, MixFlow (arXiv 2512.19311): m_t uniform in [(1 - gamma) t, t] with t = 1 - sigma. The paper
    draws t from Beta(2, 1), which is ``flow_use_beta_schedule`` with alpha 1 and beta 2 over sigma.
    """
    draw = torch.rand(sigmas.shape, generator=generator, device=sigmas.device)
    return sigmas + draw * gamma * (1 - sigmas)


def noised(
    latents: torch.Tensor, sigmas: torch.Tensor, changes: Perturbation, step: int, generator: torch.Generator
) -> NoisedBatch:
    """Draw noise and make the batch that the model sees.

    Args:
        latents: [B, C, h, w] float32 on the generator's device.
        sigmas: [B] in [0, 1].
        changes: What to change; draws of what is off are not made.
        step: Optimizer steps done.
        generator: The only source of randomness.
    """
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    if changes.offset:
        noise = offset_noise(noise, changes.offset, changes.offset_probability, generator)
    batch = add_noise(latents, noise, sigmas)
    if changes.slowed:
        slowed = slow_sigmas(batch.sigmas, changes.slowed, generator)
        batch = replace(batch, noisy_latents=interpolate(latents, noise, slowed))
    strength = changes.input_strength_at(step)
    if strength:
        batch = perturb_input(batch, strength, generator)
    return batch
