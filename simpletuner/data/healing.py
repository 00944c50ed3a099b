"""Room 4 at training time: what is found damaged in a cache is made anew, once, and kept in the place of what was lost.

In: a store and a function that makes its tensors. Out: the tensors by key, as from the store. Knows neither captions nor
masks: how one is made is handed in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from simpletuner.data.cache import TensorStore
from simpletuner.data.shards import must_be_finite
from simpletuner.errors import CacheError, DamagedError
from simpletuner.wording import counted

CAPTIONS_ANEW = ("caption was encoded anew", "captions were encoded anew")
MASKS_ANEW = ("mask was read anew", "masks were read anew")

Anew = Callable[[Sequence[str]], Mapping[str, torch.Tensor]]


class HealedOnce:
    """Which tensors were healed in this run: one that is damaged again would be damaged for ever."""

    def __init__(self) -> None:
        """None yet."""
        self._known: set[tuple[Path, str]] = set()

    def add(self, store: TensorStore, key: str) -> None:
        """Note that this one was written anew."""
        self._known.add((store.folder, key))

    def check(self, store: TensorStore, key: str, error: DamagedError) -> None:
        """Raises CacheError if this one was written anew before."""
        if (store.folder, key) in self._known:
            raise CacheError(
                f"{error.shard} is damaged again ({error.reason}), although this run has written it anew: most likely the "
                "disk or the memory of this machine fails. What to do: look into the system's log, move the cache to "
                "another disk (cache_dir), and run again."
            ) from error


class Healing:
    """Tensors by key, like a TensorStore."""

    def __init__(self, store: TensorStore, anew: Anew, what: tuple[str, str], tell: Callable[[str], None]) -> None:
        """Heal ``store``.

        Args:
            store: Where the tensors are, and stay.
            anew: Keys → tensors in the dtype of the store, on the CPU, for those keys that can be made; the same bits as
                those that were lost.
            what: What they are made from and that it is made anew, for one and for many.
            tell: For the sentence about a damaged shard.
        """
        self.store = store
        self._anew, self._what, self._tell = anew, what, tell
        self._healed = HealedOnce()
        self._lock = threading.Lock()

    def get(self, key: str) -> torch.Tensor:
        """The tensor; where it is damaged, all that its shard has lost is made anew first.

        Raises:
            CacheError: Not in the cache; damaged, and cannot be made or was made anew before; cannot be written.
        """
        try:
            return self.store.get(key)
        except DamagedError:
            with self._lock:
                return self._get_healed(key)

    def _get_healed(self, key: str) -> torch.Tensor:
        try:
            return self.store.get(key)  # another thread may have been first
        except DamagedError as error:
            self._healed.check(self.store, key, error)
            lost = self.store.lost(error.shard)
            fresh = self._anew(lost)
            if key not in fresh:
                raise
            self._tell(f"{error.shard} was damaged ({error.reason}): {counted(len(fresh), *self._what)}")
            for each, tensor in fresh.items():
                must_be_finite(tensor, f"{each[:12]}… anew")
            self.store.mend(error.shard, fresh)
            for each in fresh:
                self._healed.add(self.store, each)
            return fresh[key]

    def close(self) -> None:
        """Close the store's files."""
        self.store.close()
