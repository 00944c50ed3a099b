"""Rooms 2 and 5 for datasets whose random crops are drawn anew in each epoch (``vae_cache_clear_each_epoch``).

In: what was found, and an epoch. Out: that epoch's buckets and samples, a pure function of dataset, file and epoch: every
rank and every resumed run sees the same. Latents of a new epoch are encoded when a batch first needs them; those of the
epoch before are forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from simpletuner.data.cache import TensorStore
from simpletuner.data.encode import PlacedSample
from simpletuner.data.loader import LatentRef
from simpletuner.data.masks import MaskSource, weights
from simpletuner.data.sampler import Bucket, Drawing, Plan
from simpletuner.training import keeping, prepare

Forget = Callable[[TensorStore, Set[str], Set[str]], None]


@dataclass(frozen=True, slots=True)
class FreshMask:
    """Loss weights of one picture at one place; cut whenever they are asked for, and never kept."""

    placed: PlacedSample
    source: MaskSource
    stride: int

    def get(self, key: str) -> torch.Tensor:
        """[1, h, w] weights, whatever the key. Raises ImageError."""
        assert self.placed.mask is not None
        return weights(self.placed.mask, self.placed.placement, self.source.kind, self.stride)


class Samples:
    """Everything a run draws from, by epoch; the same in every epoch for most datasets."""

    def __init__(self, found: Sequence[prepare.Found], refs: keeping.Refs, forget: Forget | None = None) -> None:
        """All samples of all training datasets.

        Args:
            found: After rooms 1 to 4; not changed afterwards.
            refs: Where their tensors are, as of the first epoch; may be empty where only buckets are wanted.
            forget: Called with a store, keys of the epoch before, and keys to keep.
        """
        self._found, self._refs, self._forget = list(found), refs, forget
        self.placed = prepare.buckets_of(found)[1]
        self._again = [item for item in self._found if item.source.redraw]
        self._in = lru_cache(maxsize=2)(self._place)
        self._all = lru_cache(maxsize=2)(self._refs_in)
        self._epoch = 0

    def buckets(self, epoch: int) -> list[Bucket]:
        """The buckets of an epoch (from 0); members count through ``placed`` whatever the epoch."""
        return prepare.buckets_of(self._in(epoch))[0]

    def __call__(self, epoch: int) -> list[LatentRef]:
        """References to all samples at their places in this epoch."""
        if epoch != self._epoch:
            self._roll_over(epoch)
        return self._all(epoch)

    def plan(self, drawing: Drawing, seed: int) -> Plan:
        """The plan over all epochs. Buckets change only where aspects are drawn anew, not where crops are."""
        aspects = any(i.source.placement.crop_aspect == "random" for i in self._again)
        return Plan(self.buckets(0), drawing, seed, self.buckets if aspects else None)

    def _place(self, epoch: int) -> list[prepare.Found]:
        if not epoch or not self._again:
            return self._found
        return [
            replace(item, placed=[prepare.place_in(item.source, p, epoch) for p in item.placed])
            if item.source.redraw
            else item
            for item in self._found
        ]

    def _refs_in(self, epoch: int) -> list[LatentRef]:
        found = [(item.source, placed) for item in self._in(epoch) for placed in item.placed]
        return [self._ref(source, placed) for source, placed in found]

    def _ref(self, source: prepare.DatasetSource, placed: PlacedSample) -> LatentRef:
        ref = self._refs[source.id, placed.sample.path]
        if not source.redraw:
            return ref
        mask = None
        if source.mask and placed.mask:
            mask = (FreshMask(placed, source.mask, source.stride), "", source.mask.probability)
        return replace(ref, key=placed.key, placed=placed, mask=mask, alone=True)

    def _roll_over(self, epoch: int) -> None:
        """Let go of the latents of the epoch before, except those that are still asked for.

        Those of the first epoch stay: they are also what a run without new crops uses.
        """
        self._epoch = epoch
        if not self._forget or epoch < 2:
            return
        wanted = {p.key for item in (*self._in(epoch), *self._found) for p in item.placed}
        old = {item.source.id: item for item in self._in(epoch - 1)}
        for item in self._again:
            store = self._refs[item.source.id, item.placed[0].sample.path].store
            if store is not None:
                self._forget(store, {p.key for p in old[item.source.id].placed} - wanted, wanted)
