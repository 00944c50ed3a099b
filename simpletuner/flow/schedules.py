"""Room 6, Noise: which sigmas are trained, and how often.

In: a Density and a generator. Out: sigmas. Knows nothing of models, options or batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

# Resolution-dependent shift: mu is linear in the number of transformer tokens.
# Source: FlowMatchEulerDiscreteScheduler's base/max values in diffusers (after Esser et al. 2024, sec. 5.3.2).
BASE_TOKENS, MAX_TOKENS = 256, 4096
BASE_SHIFT, MAX_SHIFT = 0.5, 1.15


def shift_sigmas(sigmas: torch.Tensor, shift: float | torch.Tensor) -> torch.Tensor:
    """Move sigmas towards noise (shift > 1) or towards data (shift < 1).

    Args:
        sigmas: Any shape, in [0, 1].
        shift: Positive; 1 changes nothing.

    Returns:
        shift * sigma / (1 + (shift - 1) * sigma), in [0, 1], increasing in sigma.

    Source: Esser et al. 2024 (arXiv 2403.03206), eq. 23.
    """
    return shift * sigmas / (1.0 + (shift - 1.0) * sigmas)


def auto_shift(tokens: int) -> float:
    """Shift for a picture of ``tokens`` transformer tokens: exp(mu), mu linear and not clamped.

    Args:
        tokens: (latent height / patch) * (latent width / patch); 1024 for Sana at 1024 px.

    Returns:
        exp(mu) > 0; 1.878 at 1024 tokens.

    Source: Esser et al. 2024, sec. 5.3.2, with the constants of diffusers' ``calculate_shift``.
    """
    slope = (MAX_SHIFT - BASE_SHIFT) / (MAX_TOKENS - BASE_TOKENS)
    return math.exp(BASE_SHIFT + slope * (tokens - BASE_TOKENS))


@dataclass(frozen=True, slots=True)
class Density:
    """How sigmas are drawn: a density, then a shift.

    Attributes:
        kind: ``logit_normal``: sigmoid(scale * N(0, 1) + offset); ``uniform``: U(0, 1).
        scale: Standard deviation of the normal draw before the sigmoid.
        shift: A number, or "auto" for ``auto_shift`` of each batch's tokens.
    """

    kind: Literal["logit_normal", "uniform"] = "logit_normal"
    scale: float = 1.0
    shift: float | Literal["auto"] = 3.0

    def describe(self) -> str:
        """One sentence for the log."""
        drawn = f"sigmoid({self.scale:g} * N(0, 1))" if self.kind == "logit_normal" else "U(0, 1)"
        moved = "shifted by picture size" if self.shift == "auto" else f"shifted by {self.shift:g}"
        return f"sigma drawn from {drawn}, {moved}"


def draw_sigmas(density: Density, count: int, tokens: int, offset: float, generator: torch.Generator) -> torch.Tensor:
    """Draw sigmas for one micro-batch.

    Args:
        density: What to draw from.
        count: How many.
        tokens: Transformer tokens of one picture; used by the automatic shift only.
        offset: Added to the normal draw before the sigmoid (a dataset's ``timestep_sampling_offset``).
        generator: The only source of randomness; sigmas come out on its device.

    Returns:
        [count] float32 in [0, 1].

    Source: logit-normal density, Esser et al. 2024, eq. 19; the official Sana recipe is scale 1, offset 0,
    shift 3.
    """
    device = generator.device
    if density.kind == "uniform":
        sigmas = torch.rand(count, generator=generator, device=device)
    else:
        normal = torch.randn(count, generator=generator, device=device)
        sigmas = torch.sigmoid(density.scale * normal + offset)
    shift = auto_shift(tokens) if density.shift == "auto" else density.shift
    return shift_sigmas(sigmas, shift)


def histogram(density: Density, tokens: int, offset: float = 0.0, bins: int = 10) -> list[str]:
    """A small text picture of the sigmas in force, one line a bin, for the log."""
    generator = torch.Generator().manual_seed(0)
    sigmas = draw_sigmas(density, 20_000, tokens, offset, generator)
    shares = torch.histc(sigmas, bins=bins, min=0.0, max=1.0) / sigmas.numel()
    widest = shares.max().item()
    return [
        f"{i / bins:.1f}-{(i + 1) / bins:.1f} {'█' * round(30 * share / widest):<30} {share:5.1%}"
        for i, share in enumerate(shares.tolist())
    ]
