"""Room 7, Score: prediction and target become one number per sample, and sigma decides its weight. Logs nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch


def mean_squared_error(
    prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared error of each sample, summed in float32.

    Args:
        prediction: [B, ...] any float dtype.
        target: Same shape.
        weights: [B, 1, h, w] in [0, 1] for a masked loss, or None. The mean is over all elements, not over the white
            ones: a small mask gives a small loss, as in the original program.

    Returns:
        [B] float32, at least 0.

    Source: the flow-matching loss, Lipman et al. 2023 (arXiv 2210.02747), eq. 23.
    """
    return _mean((prediction.float() - target.float()).square(), weights)


def _mean(error: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return (error if weights is None else error * weights).flatten(1).mean(1)


@dataclass(frozen=True, slots=True)
class Loss:
    """How far a prediction is from its target.

    Attributes:
        kind: ``l2``: d²; ``huber``: 2 c (sqrt(d² + c²) - c), near d² where d is far below c, and 2 c |d| far above;
            ``smooth_l1``: the same over c, so 2 |d| far above c.
        c: Where the two meet, at sigma 1; above 0, and at most 1 with a schedule other than constant.
        schedule: c by sigma. ``constant``: c; ``exponential``: c^sigma, from 1 at the data; ``snr``:
            (1 - c)(1 - sigma)² + c, also from 1 at the data.

    Source: Khrapov et al. 2024 (arXiv 2403.16728) and diffusers' example of it. Its snr schedule has
    1 / (1 + noise / signal)², which on the straight path is (1 - sigma)².
    """

    kind: Literal["l2", "huber", "smooth_l1"] = "l2"
    c: float = 0.1
    schedule: Literal["constant", "exponential", "snr"] = "snr"

    def threshold(self, sigmas: torch.Tensor) -> torch.Tensor:
        """C at these sigmas, same shape."""
        if self.schedule == "exponential":
            return self.c**sigmas
        if self.schedule == "snr":
            return (1 - self.c) * (1 - sigmas).square() + self.c
        return torch.full_like(sigmas, self.c)

    def per_sample(
        self, prediction: torch.Tensor, target: torch.Tensor, sigmas: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[B] float32, at least 0; arguments as for ``mean_squared_error``, and sigmas [B]."""
        if self.kind == "l2":
            return mean_squared_error(prediction, target, weights)
        c = self.threshold(sigmas.float()).reshape(-1, *[1] * (target.ndim - 1))
        squared = (prediction.float() - target.float()).square()
        # sqrt(d² + c²) - c without the difference of nearly equal numbers
        far = squared / ((squared + c * c).sqrt() + c)
        return _mean(2 * far * c if self.kind == "huber" else 2 * far, weights)

    def describe(self) -> str:
        """A few words for the log."""
        if self.kind == "l2":
            return "mean squared error (l2)"
        return f"{self.kind}, c = {self.c:g} ({self.schedule})"


# The smallest timestep of a schedule of 1000; 1 / sigma² has no bound below it.
_SMALLEST = 1e-3


@dataclass(frozen=True, slots=True)
class Weighting:
    """How much a sample counts, by its sigma.

    Attributes:
        scheme: ``none``: 1; ``sigma_sqrt``: 1 / sigma²; ``cosmap``: 2 / (pi (1 - 2 sigma + 2 sigma²)); ``min_snr`` and
            ``soft_min_snr``: see below.
        gamma: Of min-SNR, above 0.
        sigma_data: Of soft min-SNR, above 0; 1 / sigma_data² is its gamma.

    Min-SNR bounds the weight of the error in the clean picture: min(SNR, gamma), softly 1 / (1 / SNR + sigma_data²).
    Here SNR = ((1 - sigma) / sigma)². The clean picture is x0 = x - sigma * v, so an error in it is sigma times one in
    the velocity, and the weight of the velocity's squared error is sigma² times that: min((1 - sigma)², gamma sigma²),
    softly sigma² / (1 / SNR + sigma_data²). For a variance-preserving path the same steps give the known
    min(SNR, gamma) / (SNR + 1) of v-prediction. Weights are not normalised, so the loss shown is smaller than without.

    Source: Hang et al. 2023 (arXiv 2303.09556), eq. 8, carried over to the velocity by us; soft: Crowson et al. 2024
    (arXiv 2401.11605), the same; sigma_sqrt and cosmap: diffusers' ``compute_loss_weighting_for_sd3`` after Esser et
    al. 2024 (arXiv 2403.03206), where sigma_sqrt meets no sigma below 0.001: smaller ones count as that here.
    """

    scheme: Literal["none", "sigma_sqrt", "cosmap", "min_snr", "soft_min_snr"] = "none"
    gamma: float = 5.0
    sigma_data: float = 0.5

    def at(self, sigmas: torch.Tensor) -> torch.Tensor:
        """Weights at these sigmas, same shape, at least 0 and finite."""
        if self.scheme == "sigma_sqrt":
            return sigmas.clamp(min=_SMALLEST) ** -2.0
        if self.scheme == "cosmap":
            return 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas.square()))
        if self.scheme == "min_snr":
            return torch.minimum((1 - sigmas).square(), self.gamma * sigmas.square())
        if self.scheme == "soft_min_snr":
            signal, noise = (1 - sigmas).square(), sigmas.square()
            # sigma² / (noise / signal + sigma_data²), with the fraction cleared
            return noise * signal / (noise + signal * self.sigma_data**2)
        return torch.ones_like(sigmas)

    def describe(self) -> str:
        """A few words for the log."""
        return {
            "none": "every sigma counts alike",
            "sigma_sqrt": "weighted by 1 / sigma²",
            "cosmap": "weighted by cosmap",
            "min_snr": f"weighted by min-SNR, gamma {self.gamma:g}",
            "soft_min_snr": f"weighted by soft min-SNR, sigma_data {self.sigma_data:g}",
        }[self.scheme]
