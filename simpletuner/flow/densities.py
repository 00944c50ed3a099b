"""Room 6, Noise: densities of sigma before any shift, each by its inverse distribution function.

In: numbers in [0, 1]. Out: sigmas in [0, 1]. Draws nothing itself: a uniform draw put through ``quantile`` is a draw from
the density, an even spread of them is an even spread over the density.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import torch

# Where the normal density is practically 0; keeps the quantile finite at 0 and 1.
_EDGE = 1e-7


class Shape(Hashable, Protocol):
    """A density of sigma."""

    def quantile(self, u: torch.Tensor) -> torch.Tensor:
        """Not decreasing, from [0, 1] to [0, 1]; any shape, float64."""

    def describe(self) -> str:
        """A few words for the log."""


@dataclass(frozen=True, slots=True)
class LogitNormal:
    """sigmoid(scale * N(0, 1) + mean): most of the middle, little of the ends.

    Source: Esser et al. 2024 (arXiv 2403.03206), eq. 19. The official Sana recipe is mean 0, scale 1.
    """

    mean: float = 0.0
    scale: float = 1.0

    def quantile(self, u: torch.Tensor) -> torch.Tensor:
        """sigmoid(scale * inverse normal(u) + mean)."""
        return torch.sigmoid(self.scale * torch.special.ndtri(u.clamp(_EDGE, 1 - _EDGE)) + self.mean)

    def describe(self) -> str:
        """The formula."""
        mean = f" {'+' if self.mean > 0 else '-'} {abs(self.mean):g}" if self.mean else ""
        return f"sigmoid({self.scale:g} * N(0, 1){mean})"


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every sigma alike."""

    def quantile(self, u: torch.Tensor) -> torch.Tensor:
        """U itself."""
        return u

    def describe(self) -> str:
        """The formula."""
        return "U(0, 1)"


@dataclass(frozen=True, slots=True)
class Beta:
    """Beta(alpha, beta) over sigma: alpha > beta means more noise, 1 and 1 is uniform.

    The inverse distribution function has no closed form. In z = logit(sigma) the density is proportional to
    sigma^alpha * (1 - sigma)^beta, smooth and falling exponentially at both ends for every alpha and beta, so the
    trapezoid rule over z is very exact; the table is inverted by linear interpolation.

    Attributes:
        alpha: In [0.1, 100].
        beta: In [0.1, 100].
    """

    alpha: float = 2.0
    beta: float = 2.0

    def quantile(self, u: torch.Tensor) -> torch.Tensor:
        """Interpolated in the table; exact to about 1e-5."""
        z, total = (part.to(u.device) for part in _beta_table(self.alpha, self.beta))
        right = torch.searchsorted(total, u.contiguous()).clamp(1, len(total) - 1)
        left = right - 1
        share = (u - total[left]) / (total[right] - total[left]).clamp(min=1e-300)
        return torch.sigmoid(z[left] + share.clamp(0, 1) * (z[right] - z[left]))

    def describe(self) -> str:
        """The formula."""
        return f"Beta({self.alpha:g}, {self.beta:g})"


@lru_cache(maxsize=8)
def _beta_table(alpha: float, beta: float, points: int = 8193) -> tuple[torch.Tensor, torch.Tensor]:
    """(z, distribution function at z), both [points] float64."""
    middle, spread = math.log(alpha / beta), 12 * math.sqrt(1 / alpha + 1 / beta)
    z = torch.linspace(middle - 32 / alpha - spread, middle + 32 / beta + spread, points, dtype=torch.float64)
    log = -alpha * torch.nn.functional.softplus(-z) - beta * torch.nn.functional.softplus(z)
    total = torch.cumulative_trapezoid((log - log.max()).exp(), dx=1.0)
    return z, torch.cat([total.new_zeros(1), total / total[-1]])


@dataclass(frozen=True, slots=True)
class Cubic:
    """sigma = B(U), B the cubic Bezier curve of four values and U uniform: the curve is the inverse distribution function.

    (0, 1/3, 2/3, 1) is uniform; values crowded together make the sigmas near them frequent.

    Attributes:
        weights: Four values in [0, 1], not decreasing, so that the curve does not turn back.

    Source: own definition from the Bernstein form of a Bezier curve; the original program names the key only.
    """

    weights: tuple[float, float, float, float]

    def quantile(self, u: torch.Tensor) -> torch.Tensor:
        """The curve at u, in Bernstein form."""
        a, b, c, d = self.weights
        v = 1 - u
        return (v**3 * a + 3 * v**2 * u * b + 3 * v * u**2 * c + u**3 * d).clamp(0, 1)

    def describe(self) -> str:
        """The values."""
        return f"the cubic Bezier curve {', '.join(f'{w:g}' for w in self.weights)} of U(0, 1)"


# The curve of Mode turns back outside of these. Source: Esser et al. 2024, below eq. 20.
MODE_SCALES = (-1.0, 2 / (math.pi - 2))


@dataclass(frozen=True, slots=True)
class Mode:
    """Heavier tails than logit-normal: 1 - u - scale * (cos²(pi u / 2) - 1 + u).

    Attributes:
        scale: In ``MODE_SCALES``; above 0 more of the middle, below 0 more of the ends.

    Source: Esser et al. 2024, eq. 20.
    """

    scale: float = 1.29

    def quantile(self, u: torch.Tensor) -> torch.Tensor:
        """Eq. 20 at 1 - u: the published curve falls, a quantile rises."""
        v = 1 - u
        return (1 - v - self.scale * (torch.cos(math.pi * v / 2) ** 2 - 1 + v)).clamp(0, 1)

    def describe(self) -> str:
        """The name."""
        return f"the mode density with scale {self.scale:g}"


@dataclass(frozen=True, slots=True)
class CosMap:
    """The density that gives the cosine schedule's log-SNR: 1 - 1 / (tan(pi u / 2) + 1).

    Source: Esser et al. 2024, eq. 21.
    """

    def quantile(self, u: torch.Tensor) -> torch.Tensor:
        """Eq. 21, with tan written as sin / cos so that u = 1 is finite."""
        angle = math.pi * u / 2
        sin, cos = torch.sin(angle), torch.cos(angle)
        return (sin / (sin + cos)).clamp(0, 1)

    def describe(self) -> str:
        """The name."""
        return "the cosmap density"


@dataclass(frozen=True, slots=True)
class Listed:
    """These sigmas and no others, never shifted.

    Attributes:
        sigmas: In [0, 1].
        order: ``random`` draws, ``round-robin`` takes turns over the pictures of the run.
    """

    sigmas: tuple[float, ...]
    order: Literal["random", "round-robin"] = "random"

    def quantile(self, u: torch.Tensor) -> torch.Tensor:
        """Each value for an equal share of [0, 1], in rising order."""
        values = torch.tensor(sorted(self.sigmas), dtype=u.dtype, device=u.device)
        return values[(u * len(values)).long().clamp(max=len(values) - 1)]

    def turn(self, first: int, count: int) -> torch.Tensor:
        """[count] float32: the sigmas of pictures ``first``, ``first + 1``, … of a run, as listed, over and over."""
        return torch.tensor([self.sigmas[(first + i) % len(self.sigmas)] for i in range(count)])

    def describe(self) -> str:
        """The timesteps."""
        shown = ", ".join(f"{1000 * sigma:g}" for sigma in self.sigmas[:8])
        more = f", … ({len(self.sigmas)} in all)" if len(self.sigmas) > 8 else ""
        return f"the timesteps {shown}{more}, {'at random' if self.order == 'random' else 'in turn'}"
