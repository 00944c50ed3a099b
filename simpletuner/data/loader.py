"""Room 5, Draw (the batches): read what the plan names and stack it.

In: position k in the plan. Out: Batch. Caption choice and caption dropout are drawn from (seed, k) alone, so the same
k gives the same batch in every run. One thread reads ahead.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from simpletuner.data.cache import TensorStore
from simpletuner.data.encode import PlacedSample, text_key
from simpletuner.data.masks import stack
from simpletuner.data.sampler import Plan
from simpletuner.data.types import Batch

READ_AHEAD = 4

# The dropped caption. Encoded without the instruction prefix: exactly validation's default negative prompt.
DROPPED = ""


class Tensors(Protocol):
    """What gives a tensor by its key."""

    def get(self, key: str) -> torch.Tensor:
        """The tensor."""
        ...


@dataclass(frozen=True, slots=True)
class LatentRef:
    """Where one sample's tensors are.

    Attributes:
        name: Its path, for messages.
        store: Holds its latents, or will; None where they are never kept.
        key: Their key.
        captions: To choose from.
        mask: Store, key and probability of its loss weights, or None.
        placed: What it is made from, for encoding on demand; None where it is in the store.
        alone: Encode it by itself: then its latents depend on nothing that another run may have cached.
        memory: Folder that remembers which pictures cannot be decoded, or None.
    """

    name: str
    store: TensorStore | None
    key: str
    captions: tuple[str, ...]
    mask: tuple[Tensors, str, float] | None = None
    placed: PlacedSample | None = None
    alone: bool = False
    memory: Path | None = None


def read_latents(samples: Sequence[LatentRef]) -> torch.Tensor:
    """[B, C, h, w] latents of samples of one bucket, all of them encoded ahead.

    Raises:
        CacheError: One is missing or damaged.
    """
    return torch.stack([sample.store.get(sample.key) for sample in samples if sample.store is not None])


class Loader:
    """Batches by position."""

    def __init__(
        self,
        samples: Sequence[LatentRef] | Callable[[int], Sequence[LatentRef]],
        texts: Tensors,
        plan: Plan,
        seed: int,
        caption_dropout: float,
        timestep_offsets: Mapping[str, float],
        latents_of: Callable[[Sequence[LatentRef]], torch.Tensor] = read_latents,
        regularisation: Collection[str] = (),
        text_multiple: int = 1,
        pinned: bool = False,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Read ``samples`` in the order of ``plan``.

        Args:
            samples: What the plan's members index; or a function that gives it for an epoch (from 0).
            texts: Text embeds by caption, trimmed.
            plan: The order.
            seed: For caption choice and dropout.
            caption_dropout: Probability in [0, 1] that a caption becomes the empty one.
            timestep_offsets: By dataset id; 0 where absent.
            latents_of: Gives the latents of samples of one bucket.
            regularisation: Ids of the datasets whose batches are marked so.
            text_multiple: Text is padded to the next multiple of this many tokens: fewer shapes to compile for.
            pinned: Batches lie in pinned memory, so that a GPU can fetch them by itself.
            share: Rank and number of ranks: batches are this rank's slices.
        """
        self._text_multiple, self._pinned, self._share = text_multiple, pinned, share
        self._latents_of = latents_of
        self._samples_in = samples if callable(samples) else lambda epoch: samples
        self._texts = texts
        self._plan = plan
        self._seed = seed
        self._dropout = caption_dropout
        self._offsets = dict(timestep_offsets)
        self._regularisation = frozenset(regularisation)

    def batch(self, position: int) -> Batch:
        """The micro-batch at ``position``.

        Raises:
            CacheError: A cached tensor is missing or damaged.
        """
        spec = self._plan.batch(position)
        generator = random.Random(f"{self._seed}/captions/{position}")
        samples = self._samples_in(self._plan.epoch_of(position))
        everyone = [samples[i] for i in spec.members]
        # What is drawn is drawn for all ranks: none knows what another has drawn.
        captions = [self._caption(sample, generator) for sample in everyone]
        masked = random.Random(f"{self._seed}/masks/{position}")  # its own draws: masks change no caption
        acts = [masked.random() for _ in everyone]
        mine = spec.rows(*self._share)
        chosen, captions = everyone[mine], captions[mine]
        text, mask = pad([self._texts.get(text_key(caption)) for caption in captions], self._text_multiple)
        latents = self._latents_of(chosen)
        weights = [self._weights(sample, draw) for sample, draw in zip(chosen, acts[mine], strict=True)]
        batch = Batch(
            latents=latents,
            text=text,
            mask=mask,
            sample_ids=tuple(sample.name for sample in everyone),
            dataset_id=spec.dataset_id,
            timestep_offset=self._offsets.get(spec.dataset_id, 0.0),
            loss_weights=stack(weights, (latents.shape[-2], latents.shape[-1])),
            regularisation=spec.dataset_id in self._regularisation,
            first=self._plan.pictures_before(position),
        )
        return pin(batch) if self._pinned else batch

    def stream(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Batches start … stop - 1 in order, read ahead by one thread."""
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
            pending = [pool.submit(self.batch, k) for k in range(start, min(start + READ_AHEAD, stop))]
            for position in range(start, stop):
                batch = pending.pop(0).result()
                if (ahead := position + READ_AHEAD) < stop:
                    pending.append(pool.submit(self.batch, ahead))
                yield batch

    def _weights(self, sample: LatentRef, draw: float) -> torch.Tensor | None:
        if sample.mask is None or draw >= sample.mask[2]:
            return None
        store, key, _ = sample.mask
        return store.get(key)

    def _caption(self, sample: LatentRef, generator: random.Random) -> str:
        # Both draws are always made, so that dropout does not change which alternative others get.
        caption = generator.choice(sample.captions)
        return DROPPED if generator.random() < self._dropout else caption


def pin(batch: Batch) -> Batch:
    """The batch in pinned memory."""
    weights = None if batch.loss_weights is None else batch.loss_weights.pin_memory()
    latents, text, mask = (t.pin_memory() for t in (batch.latents, batch.text, batch.mask))
    return replace(batch, latents=latents, text=text, mask=mask, loss_weights=weights)


def pad(texts: Sequence[torch.Tensor], multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack [n_i, D] embeds to [B, n, D] with a [B, n] mask, n the longest rounded up to a multiple.

    Padding to the longest of the batch, not to 300, is exact: the mask takes padding out of cross-attention.
    """
    longest = max(text.shape[0] for text in texts)
    longest += -longest % multiple
    padded = texts[0].new_zeros(len(texts), longest, texts[0].shape[1])
    mask = torch.zeros(len(texts), longest, dtype=torch.int64)
    for row, text in enumerate(texts):
        padded[row, : text.shape[0]] = text
        mask[row, : text.shape[0]] = 1
    return padded, mask
