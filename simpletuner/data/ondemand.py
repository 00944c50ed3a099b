"""Room 4 at training time: latents that were not encoded ahead are encoded when a batch asks for them.

In: references to samples. Out: their latents in the same order, the very ones that caching ahead would have kept (same
pixels, same encoder, same dtype). Where a dataset has a cache, what was encoded is kept in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path

import torch

from simpletuner.data import undecodable
from simpletuner.data.cache import ShardWriter, TensorStore
from simpletuner.data.encode import decoding_threads, text_key
from simpletuner.data.healing import CAPTIONS_ANEW, HealedOnce, Healing
from simpletuner.data.images import cut
from simpletuner.data.loader import LatentRef
from simpletuner.data.shards import must_be_finite
from simpletuner.errors import CacheError, DamagedError, DataError, ImageError


class TextsOnDemand:
    """Text embeds by key, like a TensorStore; what it lacks is encoded when asked for, each caption by itself."""

    def __init__(
        self,
        store: TensorStore | None,
        encode: Callable[[list[str]], list[torch.Tensor]],
        dtype: torch.dtype,
        captions: Iterable[str],
        tell: Callable[[str], None],
    ) -> None:
        """Encode with ``encode``.

        Args:
            store: Where embeds are kept, or None to keep none.
            encode: Captions → one [n, D] tensor each, real tokens only.
            dtype: Of the embeds, as in the cache.
            captions: Every caption that may be asked for.
            tell: For the sentence about a shard that is damaged on disk.
        """
        self._encode, self._dtype = encode, dtype
        self._captions = {text_key(caption): caption for caption in captions}
        self._writer = store.writer() if store is not None else None
        self._kept = None
        if store is not None:
            self._kept = Healing(store, self._anew, CAPTIONS_ANEW, tell)

    def get(self, key: str) -> torch.Tensor:
        """[n, D] embeds. Raises CacheError for a caption that was not announced."""
        if self._writer and (pending := self._writer.pending(key)) is not None:
            return pending
        if self._kept and key in self._kept.store:
            return self._kept.get(key)
        if key not in self._captions:
            raise CacheError(f"no caption of this run has the key {key[:12]}…; run again.")
        embeds = self._anew([key])[key]
        if self._writer:
            self._writer.add(key, embeds, f"the caption {self._captions[key][:60]!r}")
        return embeds

    def _anew(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """Those that were announced, encoded one by one as they always are here."""
        known = [(key, self._captions[key]) for key in keys if key in self._captions]
        return {key: self._encode([caption])[0].to(self._dtype).cpu() for key, caption in known}

    def close(self) -> None:
        """Write what is still buffered."""
        if self._writer:
            self._writer.flush()


class OnDemand:
    """Reads latents from their store, and encodes what no store holds."""

    def __init__(
        self,
        encode: Callable[[torch.Tensor], torch.Tensor],
        dtype: torch.dtype,
        encode_batch: int,
        tell: Callable[[str], None],
    ) -> None:
        """Encode with ``encode``.

        Args:
            encode: [B, 3, H, W] in [-1, 1] → [B, C, h, w].
            dtype: Of the latents, as in the cache.
            encode_batch: Pictures per call of ``encode``.
            tell: For the sentence about a picture that cannot be decoded.
        """
        self._encode, self._dtype, self._encode_batch, self._tell = encode, dtype, encode_batch, tell
        self._writers: dict[tuple[int, bool], ShardWriter] = {}  # those soon forgotten have shards of their own
        self._pool = decoding_threads()
        self._broken: set[str] = set()
        self._healed = HealedOnce()
        self._known: dict[Path, dict[str, str]] = {}  # what earlier runs found broken, by folder and digest

    def __call__(self, samples: Sequence[LatentRef]) -> torch.Tensor:
        """[B, C, h, w] latents of samples of one bucket, in their order.

        A picture that cannot be decoded is told once, and another of the batch stands in for it.

        Raises:
            DataError: No picture of the batch can be decoded.
        """
        damaged: dict[int, DamagedError] = {}
        found = [self._kept(sample, i, damaged) for i, sample in enumerate(samples)]
        missing = [i for i, latent in enumerate(found) if latent is None]
        jobs = {i: self._pool.submit(self._pixels, samples[i]) for i in missing}
        readable = [(i, pixels) for i, job in jobs.items() if (pixels := job.result()) is not None]
        size = 1 if any(sample.alone for sample in samples) else self._encode_batch
        for start in range(0, len(readable), size):
            part = readable[start : start + size]
            latents = self._encode(torch.stack([pixels for _, pixels in part])).to(self._dtype).cpu()
            for (i, _), latent in zip(part, latents, strict=True):
                found[i] = latent
                if i not in damaged:
                    self._keep(samples[i], latent)
        self._mend(samples, found, damaged)
        good = [latent for latent in found if latent is not None]
        if not good:
            names = ", ".join(dict.fromkeys(sample.name for sample in samples))
            raise DataError(
                f"no picture of this batch can be decoded: {names}. What to do: replace these files or take them out of the "
                "dataset; `simpletuner check` names every picture that cannot be decoded, before anything is trained."
            )
        return torch.stack([good[i % len(good)] if latent is None else latent for i, latent in enumerate(found)])

    def forget(self, store: TensorStore, keys: Set[str], wanted: Set[str]) -> None:
        """Let go of latents that were encoded alone, written or not; shards that hold wanted ones too stay."""
        writer = self._writers.get((id(store), True))
        if writer:
            writer.forget(keys)
        store.forget(keys, wanted)

    def close(self) -> None:
        """Write what is still buffered."""
        self._pool.shutdown()
        for writer in self._writers.values():
            writer.flush()

    def _kept(self, sample: LatentRef, place: int, damaged: dict[int, DamagedError]) -> torch.Tensor | None:
        """The sample's latents if they are kept and whole; adds to ``damaged``, by place, where they are not."""
        if sample.store is None:
            return None
        writer = self._writers.get((id(sample.store), sample.alone))
        pending = writer.pending(sample.key) if writer else None
        if pending is not None:
            return pending
        if sample.key not in sample.store:
            return None
        try:
            return sample.store.get(sample.key)
        except DamagedError as error:
            self._healed.check(sample.store, sample.key, error)
            damaged[place] = error
            return None

    def _keep(self, sample: LatentRef, latent: torch.Tensor) -> None:
        store: TensorStore | None = sample.store
        if store is not None:
            self._writers.setdefault((id(store), sample.alone), store.writer()).add(sample.key, latent, sample.name)

    def _mend(
        self, samples: Sequence[LatentRef], found: Sequence[torch.Tensor | None], damaged: Mapping[int, DamagedError]
    ) -> None:
        """Put what was encoded anew in the place of what was lost; what else its shards have lost is encoded when needed."""
        by_shard: dict[Path, tuple[TensorStore, str, dict[str, torch.Tensor]]] = {}
        for i, error in damaged.items():
            sample, latent, store = samples[i], found[i], samples[i].store
            assert store is not None
            _, _, fresh = by_shard.setdefault(error.shard, (store, error.reason, {}))
            if latent is not None:
                must_be_finite(latent, sample.name)
                fresh[sample.key] = latent
                self._healed.add(store, sample.key)
        for shard, (store, reason, fresh) in by_shard.items():
            store.mend(shard, fresh)
            self._tell(f"{shard} was damaged ({reason}): what it has lost is encoded anew")

    def _pixels(self, sample: LatentRef) -> torch.Tensor | None:
        if sample.placed is None:
            raise CacheError(f"{sample.name} is not in the cache and cannot be encoded here.")
        path, digest, memory = sample.placed.sample.path, sample.placed.digest, sample.memory
        if memory and memory not in self._known:
            self._known[memory] = undecodable.known(memory)
        reason = self._known[memory].get(digest) if memory else None
        if reason is None:
            try:
                return cut(path, sample.placed.placement)
            except ImageError as error:
                reason = str(error)
                if memory:
                    undecodable.remember(memory, [(path, digest, reason)])
        if sample.name not in self._broken:
            self._broken.add(sample.name)
            self._tell(f"{sample.name} cannot be used: {reason}; others of its bucket stand in for it")
        return None
