"""Held-out loss: one figure that depends on the weights alone.

In: held-out samples in the cache. Out: mean loss over fixed noise and fixed sigmas. The noise of a sample is drawn from
its own cache key, so the figure is the same on every call, in every order and for every batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from simpletuner.data.encode import text_key
from simpletuner.data.loader import LatentRef, pad, read_latents
from simpletuner.data.types import Batch
from simpletuner.flow.path import NoisedBatch, add_noise

SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)
MICRO_BATCH = 8


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Held-out loss.

    Attributes:
        loss: Mean over samples and sigmas.
        by_sigma: Mean over samples at each of ``SIGMAS``.
        zero_predictor: The same mean for a model that always answers 0: what "has learned nothing" looks like.
        samples: How many pictures.
    """

    loss: float
    by_sigma: tuple[float, ...]
    zero_predictor: float
    samples: int


def fixed_noise(key: str, index: int, shape: torch.Size) -> torch.Tensor:
    """Standard normal noise of one sample at one sigma; a function of its arguments alone."""
    seed = int(key[:15], 16) * len(SIGMAS) + index
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batches(
    samples: Sequence[LatentRef],
    texts_of: Callable[[str], torch.Tensor],
    latents_of: Callable[[Sequence[LatentRef]], torch.Tensor] = read_latents,
) -> list[tuple[Batch, list[str]]]:
    """Stack held-out samples of equal shape, first caption each, with their keys."""
    shapes: dict[tuple[int, ...], list[LatentRef]] = {}
    for sample in samples:
        if sample.placed is not None:
            shape: tuple[int, ...] = tuple(sample.placed.placement.bucket)
        elif sample.store is not None:
            shape = sample.store.shape(sample.key)
        shapes.setdefault(shape, []).append(sample)
    stacked = []
    for group in shapes.values():
        for start in range(0, len(group), MICRO_BATCH):
            part = group[start : start + MICRO_BATCH]
            text, mask = pad([texts_of(text_key(s.captions[0])) for s in part])
            latents = latents_of(part)
            batch = Batch(latents, text, mask, tuple(s.name for s in part), "eval")
            stacked.append((batch, [s.key for s in part]))
    return stacked


@torch.no_grad()
def measure(
    stacked: Sequence[tuple[Batch, list[str]]],
    score: Callable[[Batch, NoisedBatch], torch.Tensor],
    device: torch.device,
) -> EvalResult:
    """Score all held-out samples at all sigmas.

    Args:
        stacked: From ``batches``.
        score: (Batch, NoisedBatch) → [B] loss of each sample.
        device: Where the model is.
    """
    sums = [0.0] * len(SIGMAS)
    zero = 0.0
    count = 0
    for batch, keys in stacked:
        latents = batch.latents.to(device, torch.float32)
        count += len(keys)
        for index, sigma in enumerate(SIGMAS):
            noise = torch.stack([fixed_noise(key, index, batch.latents.shape[1:]) for key in keys]).to(device)
            noised = add_noise(latents, noise, torch.full((len(keys),), sigma, device=device))
            sums[index] += score(batch, noised).double().sum().item()
            zero += noised.target.square().flatten(1).mean(1).double().sum().item()
    by_sigma = tuple(total / count for total in sums)
    return EvalResult(sum(by_sigma) / len(SIGMAS), by_sigma, zero / count / len(SIGMAS), count)
