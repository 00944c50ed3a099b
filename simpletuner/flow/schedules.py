"""Room 6, Noise: which sigmas are trained, and how often.

In: a Density and a generator. Out: sigmas. Knows nothing of models, options or batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import torch

from simpletuner.flow.densities import Listed, LogitNormal, Shape

# Resolution-dependent shift: mu is linear in the number of transformer tokens.
# Source: FlowMatchEulerDiscreteScheduler's base/max values in diffusers (after Esser et al. 2024, sec. 5.3.2).
BASE_TOKENS, MAX_TOKENS = 256, 4096
BASE_SHIFT, MAX_SHIFT = 0.5, 1.15


def shift_sigmas(sigmas: torch.Tensor, shift: float | torch.Tensor) -> torch.Tensor:
    """Move sigmas towards noise (shift > 1) or towards data (shift < 1).

    Args:
        sigmas: Any shape, in [0, 1].
        shift: Positive; 1 changes nothing, and 1 / shift undoes it.

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
class Bias:
    """A range of sigmas that is drawn more often, or less.

    Attributes:
        low: Where it begins, in [0, 1].
        high: Where it ends, above ``low``.
        multiplier: How many times as often as without the bias, relative to the sigmas outside; above 0.

    Source: the timestep bias of diffusers' text-to-image examples (``generate_timestep_weights``), over a density
    instead of 1000 equal weights.
    """

    low: float
    high: float
    multiplier: float

    def describe(self) -> str:
        """A few words for the log."""
        return f"{self.multiplier:g} times as often between {self.low:g} and {self.high:g}"


@dataclass(frozen=True, slots=True)
class Density:
    """How sigmas are drawn: a shape, then a shift, then a bias.

    Attributes:
        shape: The density before the shift.
        shift: A number, or "auto" for ``auto_shift`` of each batch's tokens. A ``Listed`` shape is never shifted.
        stratified: Spread each micro-batch evenly over the density; every sample's own distribution stays the same.
        bias: A range of shifted sigmas that is drawn more often, or None.
    """

    shape: Shape = field(default_factory=LogitNormal)
    shift: float | Literal["auto"] = 3.0
    stratified: bool = False
    bias: Bias | None = None

    def shift_for(self, tokens: int) -> float:
        """The shift of a picture with that many tokens."""
        if isinstance(self.shape, Listed):
            return 1.0
        return auto_shift(tokens) if self.shift == "auto" else self.shift

    def describe(self) -> str:
        """One sentence for the log."""
        text = f"sigma drawn from {self.shape.describe()}"
        if not isinstance(self.shape, Listed):
            text += ", shifted by picture size" if self.shift == "auto" else f", shifted by {self.shift:g}"
        if self.bias:
            text += f", {self.bias.describe()}"
        return text + (", spread evenly over each micro-batch" if self.stratified else "")


def spread_evenly(count: int, generator: torch.Generator) -> torch.Tensor:
    """[count] float64 in [0, 1): one uniform draw and its rotations by 1 / count.

    Each value alone is uniform; together they leave no gap wider than 1 / count.

    Source: the low-discrepancy sampler of Kingma et al. 2021 (arXiv 2107.00630), appendix I.1.
    """
    start = torch.rand(1, generator=generator, device=generator.device, dtype=torch.float64)
    return (start + torch.arange(count, device=generator.device) / count) % 1.0


def biased_quantile(u: torch.Tensor, low: float, high: float, multiplier: float) -> torch.Tensor:
    """Inverse distribution function of a density on [0, 1] that is ``multiplier`` times as high between low and high.

    Args:
        u: Any shape, in [0, 1].
        low: In [0, 1].
        high: In [low, 1].
        multiplier: Above 0.

    Returns:
        Same shape, in [0, 1], piecewise linear and increasing in ``u``.
    """
    mass = u * (1 + (multiplier - 1) * (high - low))
    inside = low + (mass - low) / multiplier
    above = mass - (multiplier - 1) * (high - low)
    return torch.where(mass < low, mass, torch.where(inside < high, inside, above)).clamp(0, 1)


@lru_cache(maxsize=64)
def rank_of(shape: Shape, sigma: float) -> float:
    """The distribution function of ``shape`` at ``sigma``, in [0, 1]: its quantile inverted by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if shape.quantile(torch.tensor(middle, dtype=torch.float64)) < sigma:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def draw_sigmas(
    density: Density, count: int, tokens: int, offset: float, generator: torch.Generator, first: int = 0
) -> torch.Tensor:
    """Draw sigmas for one micro-batch.

    Args:
        density: What to draw from.
        count: How many.
        tokens: Transformer tokens of one picture; used by the automatic shift only.
        offset: Added to the mean of a logit-normal density (a dataset's ``timestep_sampling_offset``); other shapes
            take none.
        generator: The only source of randomness; sigmas come out on its device.
        first: The number of the first picture in the run; only sigmas in turn look at it.

    Returns:
        [count] float32 in [0, 1].
    """
    shape, device = density.shape, generator.device
    if isinstance(shape, Listed) and shape.order == "round-robin":
        return shape.turn(first, count).to(device)
    shift = density.shift_for(tokens)
    if isinstance(shape, LogitNormal):
        shape = replace(shape, mean=shape.mean + offset)
        if not density.stratified and density.bias is None:  # the plain recipe needs no inverse
            normal = torch.randn(count, generator=generator, device=device)
            return shift_sigmas(torch.sigmoid(shape.scale * normal + shape.mean), shift)
    if density.stratified:
        u = spread_evenly(count, generator)
    else:
        u = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
    if density.bias:
        low, high = (
            rank_of(shape, shift_sigmas(torch.tensor(end, dtype=torch.float64), 1 / shift).item())
            for end in (density.bias.low, density.bias.high)
        )
        u = biased_quantile(u, low, high, density.bias.multiplier)
    return shift_sigmas(shape.quantile(u), shift).float().clamp(0, 1)


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
