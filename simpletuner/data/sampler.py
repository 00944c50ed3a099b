"""Room 5, Draw (the plan): which samples make up micro-batch k.

In: the buckets of each dataset, how datasets are drawn, a seed. Out: an endless, repeatable sequence of BatchSpecs. A
pure function of its arguments: resuming at k needs nothing but k. One plan serves all ranks: a global micro-batch comes
from one bucket, and each rank takes its slice, so shapes and step counts agree everywhere.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import Literal

from simpletuner.data.types import Size
from simpletuner.errors import DataError

_NAMED = 6  # buckets in one sentence


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
class Turn:
    """When and how often a dataset's batches come.

    Attributes:
        probability: Weight against other datasets; 0 never draws it.
        start_epoch: First epoch, from 1.
        end_epoch: Last epoch, or None.
        start_step: Optimizer steps done before its first batch may come.
        end_step: No batch of it comes once this many optimizer steps are done, or None.
        batch_size: Samples per micro-batch and rank, or None for the run's.
        fade_step: Its weight falls evenly, to nothing once this many optimizer steps are done; or None.
    """

    probability: float = 1.0
    start_epoch: int = 1
    end_epoch: int | None = None
    start_step: int = 0
    end_step: int | None = None
    batch_size: int | None = None
    fade_step: int | None = None

    def in_epoch(self, epoch: int) -> bool:
        """Whether it may come in this epoch (from 0)."""
        ends = self.end_epoch
        return self.probability > 0 and self.start_epoch <= epoch + 1 and (not ends or epoch + 1 <= ends)

    def at_step(self, step: int) -> bool:
        """Whether it may come when ``step`` optimizer steps are done."""
        return self.start_step <= step and all(not end or step < end for end in (self.end_step, self.fade_step))

    def fading(self, step: int) -> float:
        """What its weight is multiplied by, in [0, 1]."""
        return max(0.0, 1 - step / self.fade_step) if self.fade_step else 1.0

    @property
    def always(self) -> bool:
        """Whether no window limits it."""
        return self == Turn(self.probability, batch_size=self.batch_size)


@dataclass(frozen=True, slots=True)
class Drawing:
    """How the batches of all datasets are mixed.

    Attributes:
        batch_size: Samples per micro-batch and rank.
        accumulation: Micro-batches per optimizer step: step windows count in steps.
        world_size: Ranks that share one global micro-batch.
        mixing: ``auto-weighting``: a dataset's weight is its probability times its batches; ``uniform``: its
            probability alone.
        turns: By dataset id; an absent one is always drawn.
    """

    batch_size: int
    accumulation: int = 1
    world_size: int = 1
    mixing: Literal["auto-weighting", "uniform"] = "auto-weighting"
    turns: Mapping[str, Turn] = field(default_factory=dict)

    def turn(self, dataset_id: str) -> Turn:
        """When this dataset comes."""
        return self.turns.get(dataset_id, Turn())

    def global_batch(self, dataset_id: str) -> int:
        """Samples of one global micro-batch of this dataset."""
        return (self.turn(dataset_id).batch_size or self.batch_size) * self.world_size


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """One global micro-batch of the plan: a bucket's samples, ``members`` indexing the loader's list."""

    dataset_id: str
    members: tuple[int, ...]

    def share(self, rank: int, world_size: int) -> BatchSpec:
        """The slice of one rank; all slices are equally long."""
        return BatchSpec(self.dataset_id, self.members[self.rows(rank, world_size)])

    def rows(self, rank: int, world_size: int) -> slice:
        """Where the slice of one rank lies in the whole."""
        size = len(self.members) // world_size
        return slice(rank * size, (rank + 1) * size)


def shortfalls(buckets: Sequence[Bucket], drawing: Drawing) -> list[str]:
    """A sentence for each dataset with buckets too small for one optimizer step: the one number to set for all of them.

    A bucket needs batch size * ranks * accumulation draws an epoch.
    """
    small: dict[str, list[Bucket]] = {}
    for bucket in buckets:
        needed = drawing.global_batch(bucket.dataset_id) * drawing.accumulation
        if len(bucket.members) * (bucket.repeats + 1) < needed:
            small.setdefault(bucket.dataset_id, []).append(bucket)
    return [_shortfall(name, theirs, drawing) for name, theirs in small.items()]


def _shortfall(name: str, small: Sequence[Bucket], drawing: Drawing) -> str:
    """What the too small buckets of one dataset lack, and what would be enough."""
    needed = drawing.global_batch(name) * drawing.accumulation
    repeats = -(-needed // min(len(bucket.members) for bucket in small)) - 1
    draws = min(len(bucket.members) * (bucket.repeats + 1) for bucket in small)
    fitting = draws // (drawing.accumulation * drawing.world_size)
    remedy = f"set repeats ≥ {repeats}" + (f", or train_batch_size ≤ {fitting}" if fitting else "")
    times = small[0].repeats + 1
    why = f"; each picture counts {times} times, as repeats is {times - 1}" if times > 1 else ""
    if len(small) == 1:
        return f"[{name}] bucket {_held(small[0])}, needs {needed}{why}: {remedy}"
    few = ", ".join(map(_held, small[:_NAMED]))
    more = f" and {len(small) - _NAMED} more" if small[_NAMED:] else ""
    return f"[{name}] {len(small)} buckets are too small, each needs {needed} ({few}{more}{why}): {remedy}"


def _held(bucket: Bucket) -> str:
    """What a bucket has: its pictures, and its draws where they are more."""
    times = bucket.repeats + 1
    draws = f" × {times} = {len(bucket.members) * times}" if times > 1 else ""
    return f"{bucket.size} has {len(bucket.members)}{draws}"


class Plan:
    """The endless sequence of global micro-batches."""

    def __init__(
        self,
        buckets: Sequence[Bucket],
        drawing: Drawing,
        seed: int,
        buckets_in: Callable[[int], Sequence[Bucket]] | None = None,
    ) -> None:
        """Plan over ``buckets``.

        Args:
            buckets: Every bucket of every dataset; none empty.
            drawing: How they are mixed; every micro-batch is full.
            seed: The order depends on it and on the epoch alone.
            buckets_in: The buckets of each epoch (from 0), where they are not the same in all.

        Raises:
            DataError: No bucket at all, or no dataset may come at the start.
        """
        self._buckets_in = buckets_in
        self._buckets = tuple(b for b in buckets if drawing.turn(b.dataset_id).probability > 0)
        if not self._buckets:
            raise DataError("there are no pictures to train on. What to do: check instance_data_dir and the filters.")
        self._drawing = drawing
        self._seed = seed
        self._always = buckets_in is None and all(drawing.turn(b.dataset_id).always for b in self._buckets)
        self._lock = threading.RLock()  # batches are drawn ahead in a thread, while a hook asks how far a step is
        self._starts = [0]  # position of each epoch's first micro-batch, as far as known
        self._pictures = [0]  # drawn before that
        self._epoch = lru_cache(maxsize=2)(self._plan_epoch)
        self._drawn = lru_cache(maxsize=2)(self._drawn_in)
        if not self._epoch(0):
            raise DataError("no dataset may be drawn at the start: one needs start_epoch 1 and start_step 0 or 1.")

    def batch(self, position: int) -> BatchSpec:
        """The global micro-batch at ``position`` (from 0, across epochs)."""
        epoch = self.epoch_of(position)
        return self._epoch(epoch)[position - self._starts_at(epoch)]

    def pictures_before(self, position: int) -> int:
        """Samples of all global micro-batches before ``position``: datasets may have batch sizes of their own."""
        epoch = self.epoch_of(position)
        earlier = epoch * self._drawn(0)[-1] if self._always else self._pictures[epoch]
        return earlier + self._drawn(epoch)[position - self._starts_at(epoch)]

    def epoch_of(self, position: int) -> int:
        """The epoch (from 0) that holds this position.

        Raises:
            DataError: Every dataset's window has closed before it.
        """
        if self._always:
            return position // len(self._epoch(0))
        epoch = 0
        while self._starts_at(epoch + 1) <= position:
            epoch += 1
        return epoch

    def epochs_before(self, position: int) -> Fraction:
        """Epochs done when ``position`` micro-batches have been drawn, and the part of the one begun."""
        if not position:
            return Fraction(0)
        epoch = self.epoch_of(position - 1)
        first, end = self._starts_at(epoch), self._starts_at(epoch + 1)
        return epoch + Fraction(position - first, end - first)

    def micro_batches(self, epochs: int) -> int:
        """Global micro-batches of the first ``epochs`` epochs."""
        return self._starts_at(epochs)

    @property
    def batches_per_epoch(self) -> int:
        """Global micro-batches of the first epoch."""
        return self._starts_at(1)

    def drawn(self, positions: int) -> Counter[str]:
        """Samples of each dataset in the first ``positions`` global micro-batches.

        Raises:
            DataError: Every dataset's window has closed before the last of them.
        """
        counts: Counter[str] = Counter()
        epoch, times = 0, 1
        while positions > 0:
            specs = self._epoch(epoch)
            if self._always:  # all epochs have the same of each
                times = max(1, positions // len(specs))
            for spec in specs[:positions]:
                counts[spec.dataset_id] += len(spec.members) * times
            positions -= len(specs[:positions]) * times
            epoch += times
            self._starts_at(epoch if positions > 0 else 0)
        return counts

    def _starts_at(self, epoch: int) -> int:
        """Position of an epoch's first micro-batch. Epochs differ in length where windows or buckets change."""
        if self._always:
            return epoch * len(self._epoch(0))
        with self._lock:
            return self._found(epoch)

    def _found(self, epoch: int) -> int:
        while len(self._starts) <= epoch:
            length = len(self._epoch(len(self._starts) - 1))
            if not length:
                number = len(self._starts)
                raise DataError(
                    f"no dataset may be drawn in epoch {number}: the window of each (start and end epoch or step) is "
                    "closed. What to do: leave one open, or train for fewer steps."
                )
            self._pictures.append(self._pictures[-1] + self._drawn(len(self._starts) - 1)[-1])
            self._starts.append(self._starts[-1] + length)
        return self._starts[epoch]

    def _drawn_in(self, epoch: int) -> list[int]:
        """Samples before each micro-batch of an epoch, and at last those of all."""
        return list(accumulate((len(spec.members) for spec in self._epoch(epoch)), initial=0))

    def _plan_epoch(self, epoch: int) -> list[BatchSpec]:
        """All batches of one epoch: every draw of every open dataset once, mixed into one order."""
        queues: dict[str, list[BatchSpec]] = {}
        buckets = self._buckets_in(epoch) if self._buckets_in else self._buckets
        for number, bucket in enumerate(buckets):
            if not self._drawing.turn(bucket.dataset_id).in_epoch(epoch):
                continue
            generator = random.Random(f"{self._seed}/{epoch}/{number}")
            draws: list[int] = []
            for _ in range(bucket.repeats + 1):
                draws += generator.sample(bucket.members, len(bucket.members))
            chunks = self._chunks(draws, bucket, generator)
            queues.setdefault(bucket.dataset_id, []).extend(BatchSpec(bucket.dataset_id, c) for c in chunks)
        generator = random.Random(f"{self._seed}/{epoch}/order")
        weights = {name: self._weight(name, len(queue)) for name, queue in queues.items()}
        even = len({w / len(queues[name]) for name, w in weights.items()}) <= 1
        if self._always and even:
            order = [spec for queue in queues.values() for spec in queue]
            generator.shuffle(order)
            return order
        for queue in queues.values():
            generator.shuffle(queue)
        return self._mix(queues, weights, 0 if self._always else self._starts[epoch], generator)

    def _weight(self, dataset_id: str, batches: int) -> float:
        probability = self._drawing.turn(dataset_id).probability
        return probability * (batches if self._drawing.mixing == "auto-weighting" else 1)

    def _mix(
        self, queues: dict[str, list[BatchSpec]], weights: dict[str, float], start: int, generator: random.Random
    ) -> list[BatchSpec]:
        """Draw a dataset by weight for each place until all open ones are spent."""
        order: list[BatchSpec] = []
        while True:
            step = (start + len(order)) // self._drawing.accumulation
            names = [name for name, queue in queues.items() if queue and self._drawing.turn(name).at_step(step)]
            if not names:
                return order
            fading = (self._drawing.turn(name).fading(step) for name in names)
            (name,) = generator.choices(names, [weights[name] * f for name, f in zip(names, fading, strict=True)])
            order.append(queues[name].pop())

    def _chunks(self, draws: list[int], bucket: Bucket, generator: random.Random) -> list[tuple[int, ...]]:
        """Cut draws into full batches; the last is filled from the same bucket, others than its own first."""
        size = self._drawing.global_batch(bucket.dataset_id)
        chunks = [tuple(draws[i : i + size]) for i in range(0, len(draws), size)]
        lacking = size - len(chunks[-1])
        if lacking:
            others = [m for m in bucket.members if m not in set(chunks[-1])]
            fill = generator.sample(others, min(lacking, len(others)))
            fill += generator.choices(bucket.members, k=lacking - len(fill))
            chunks[-1] += tuple(fill)
        return chunks
