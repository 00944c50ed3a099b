"""Room 5, Draw (the plan): which samples make up micro-batch k.

In: how many samples each bucket of each dataset has, batch size, seed. Out: an endless, repeatable sequence of
BatchSpecs. A pure function of its arguments: resuming at k needs nothing but k.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from simpletuner.data.types import Size
from simpletuner.errors import DataError


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bucket of one dataset.

    Attributes:
        dataset_id: The dataset it belongs to.
        size: Its picture size.
        members: Indices of its samples in the loader's list.
        repeats: Extra passes per epoch; each sample is drawn repeats + 1 times.
    """

    dataset_id: str
    size: Size
    members: tuple[int, ...]
    repeats: int = 0


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """One micro-batch of the plan: a bucket's samples, ``members`` indexing the loader's list."""

    dataset_id: str
    members: tuple[int, ...]


def shortfalls(buckets: Sequence[Bucket], batch_size: int, accumulation: int) -> list[str]:
    """A sentence for each bucket too small for one optimizer step.

    A bucket needs batch_size * accumulation draws an epoch.
    """
    needed = batch_size * accumulation
    sentences = []
    for bucket in buckets:
        count = len(bucket.members)
        if count * (bucket.repeats + 1) < needed:
            repeats = -(-needed // count) - 1
            sentences.append(
                f"[{bucket.dataset_id}] bucket {bucket.size} has {count}, needs {needed}: set repeats ≥ {repeats}"
            )
    return sentences


class Plan:
    """The endless sequence of micro-batches."""

    def __init__(self, buckets: Sequence[Bucket], batch_size: int, seed: int) -> None:
        """Plan over ``buckets``.

        Args:
            buckets: Every bucket of every dataset; none empty.
            batch_size: Samples per micro-batch, always full.
            seed: The order depends on it and on the epoch alone.

        Raises:
            DataError: No bucket at all.
        """
        if not buckets:
            raise DataError("there are no pictures to train on. What to do: check instance_data_dir and the filters.")
        self._buckets = tuple(buckets)
        self._batch_size = batch_size
        self._seed = seed
        self.batches_per_epoch = sum(-(-len(b.members) * (b.repeats + 1) // batch_size) for b in self._buckets)
        self._epoch = lru_cache(maxsize=2)(self._plan_epoch)

    def batch(self, position: int) -> BatchSpec:
        """The micro-batch at ``position`` (from 0, across epochs)."""
        epoch, index = divmod(position, self.batches_per_epoch)
        return self._epoch(epoch)[index]

    def _plan_epoch(self, epoch: int) -> list[BatchSpec]:
        """All batches of one epoch: every draw once, batches of all buckets and datasets in one shuffled order."""
        batches: list[BatchSpec] = []
        for number, bucket in enumerate(self._buckets):
            generator = random.Random(f"{self._seed}/{epoch}/{number}")
            draws: list[int] = []
            for _ in range(bucket.repeats + 1):
                draws += generator.sample(bucket.members, len(bucket.members))
            batches += [BatchSpec(bucket.dataset_id, members) for members in self._chunks(draws, bucket, generator)]
        random.Random(f"{self._seed}/{epoch}/order").shuffle(batches)
        return batches

    def _chunks(self, draws: list[int], bucket: Bucket, generator: random.Random) -> list[tuple[int, ...]]:
        """Cut draws into full batches; the last is filled from the same bucket, others than its own first."""
        size = self._batch_size
        chunks = [tuple(draws[i : i + size]) for i in range(0, len(draws), size)]
        lacking = size - len(chunks[-1])
        if lacking:
            others = [m for m in bucket.members if m not in set(chunks[-1])]
            fill = generator.sample(others, min(lacking, len(others)))
            fill += generator.choices(bucket.members, k=lacking - len(fill))
            chunks[-1] += tuple(fill)
        return chunks
