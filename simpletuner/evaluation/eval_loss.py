"""Held-out loss: one figure that depends on the weights alone.

In: held-out samples in the cache. Out: mean loss over fixed noise and fixed sigmas. The noise of a sample is drawn from
its own cache key, so the figure is the same on every call, in every order and for every batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from simpletuner.data.encode import text_key
from simpletuner.data.loader import LatentRef, pad, read_latents
from simpletuner.data.types import Batch
from simpletuner.flow.path import NoisedBatch, add_noise

MICRO_BATCH = 8
Stacked = Sequence[tuple[Batch, list[str]]]


def evenly(count: int) -> tuple[float, ...]:
    """The middles of ``count`` equal bands of sigma between 0 and 1."""
    return tuple((band + 0.5) / count for band in range(count))


SIGMAS = evenly(5)  # 0.1, 0.3, 0.5, 0.7, 0.9


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Held-out loss.

    Attributes:
        loss: Mean over samples and sigmas.
        by_sigma: Mean over samples at each of ``sigmas``.
        zero_predictor: The same mean for a model that always answers 0: what "has learned nothing" looks like.
        samples: How many pictures.
        sigmas: Where it was measured; each stands for a band around it.
        by_dataset: ``loss`` of each dataset alone, where there are several.
    """

    loss: float
    by_sigma: tuple[float, ...]
    zero_predictor: float
    samples: int
    sigmas: tuple[float, ...] = SIGMAS
    by_dataset: dict[str, float] = field(default_factory=dict)


def fixed_noise(key: str, index: int, count: int, shape: torch.Size) -> torch.Tensor:
    """Standard normal noise of one sample at one of ``count`` sigmas; a function of its arguments alone."""
    seed = int(key[:15], 16) * count + index
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed % 2**63))


def batches(
    samples: Sequence[LatentRef],
    texts_of: Callable[[str], torch.Tensor],
    latents_of: Callable[[Sequence[LatentRef]], torch.Tensor] = read_latents,
    dataset_id: str = "eval",
    micro_batch: int = MICRO_BATCH,
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
        for start in range(0, len(group), micro_batch):
            part = group[start : start + micro_batch]
            text, mask = pad([texts_of(text_key(s.captions[0])) for s in part])
            latents = latents_of(part)
            batch = Batch(latents, text, mask, tuple(s.name for s in part), dataset_id)
            stacked.append((batch, [s.key for s in part]))
    return stacked


@torch.no_grad()
def measure(
    stacked: Stacked,
    score: Callable[[Batch, NoisedBatch], torch.Tensor],
    device: torch.device,
    sigmas: tuple[float, ...] = SIGMAS,
    pooled: bool = False,
) -> EvalResult:
    """Score all held-out samples at all sigmas.

    Args:
        stacked: From ``batches``, of one dataset or of several.
        score: (Batch, NoisedBatch) → [B] loss of each sample.
        device: Where the model is.
        sigmas: In (0, 1).
        pooled: Whether several datasets are one.
    """
    sums: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    zero = 0.0
    for batch, keys in stacked:
        latents = batch.latents.to(device, torch.float32)
        counts[batch.dataset_id] = counts.get(batch.dataset_id, 0) + len(keys)
        own = sums.setdefault(batch.dataset_id, [0.0] * len(sigmas))
        for index, sigma in enumerate(sigmas):
            shape = batch.latents.shape[1:]
            noise = torch.stack([fixed_noise(key, index, len(sigmas), shape) for key in keys]).to(device)
            noised = add_noise(latents, noise, torch.full((len(keys),), sigma, device=device))
            own[index] += score(batch, noised).double().sum().item()
            zero += noised.target.square().flatten(1).mean(1).double().sum().item()
    count = sum(counts.values())
    by_sigma = tuple(sum(own[index] for own in sums.values()) / count for index in range(len(sigmas)))
    by_dataset = {name: sum(own) / counts[name] / len(sigmas) for name, own in sums.items()}
    return EvalResult(
        loss=sum(by_sigma) / len(sigmas),
        by_sigma=by_sigma,
        zero_predictor=zero / count / len(sigmas),
        samples=count,
        sigmas=sigmas,
        by_dataset={} if pooled or len(by_dataset) == 1 else by_dataset,
    )
