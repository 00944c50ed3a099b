"""Room 4 at training time: latents that were not encoded ahead are encoded when a batch asks for them.

In: references to samples. Out: their latents in the same order, the very ones that caching ahead would have kept (same
pixels, same encoder, same dtype). Where a dataset has a cache, what was encoded is kept in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path

import torch

from simpletuner.data import undecodable
from simpletuner.data.cache import ShardWriter, TensorStore
from simpletuner.data.encode import decoding_threads, text_key
from simpletuner.data.images import cut
from simpletuner.data.loader import LatentRef
from simpletuner.errors import CacheError, DataError, ImageError


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
            tell: For the sentence about embeds that are damaged on disk.
        """
        self._store, self._encode, self._dtype, self._tell = store, encode, dtype, tell
        self._captions = {text_key(caption): caption for caption in captions}
        self._writer = store.writer() if store is not None else None

    def get(self, key: str) -> torch.Tensor:
        """[n, D] embeds. Raises CacheError for a caption that was not announced."""
        if self._writer and (pending := self._writer.pending(key)) is not None:
            return pending
        if self._store is not None and key in self._store:
            try:
                return self._store.get(key)
            except CacheError as error:  # this caption alone is encoded anew
                if key not in self._captions:
                    raise
                self._tell(f"{error} The caption {self._captions[key][:60]!r} is encoded anew.")
        if key not in self._captions:
            raise CacheError(f"no caption of this run has the key {key[:12]}…; run again.")
        caption = self._captions[key]
        embeds = self._encode([caption])[0].to(self._dtype).cpu()
        if self._writer:
            self._writer.add(key, embeds, f"the caption {caption[:60]!r}")
        return embeds

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
        self._known: dict[Path, dict[str, str]] = {}  # what earlier runs found broken, by folder and digest

    def __call__(self, samples: Sequence[LatentRef]) -> torch.Tensor:
        """[B, C, h, w] latents of samples of one bucket, in their order.

        A picture that cannot be decoded is told once, and another of the batch stands in for it.

        Raises:
            DataError: No picture of the batch can be decoded.
        """
        found = [self._kept(sample) for sample in samples]
        missing = [i for i, latent in enumerate(found) if latent is None]
        jobs = {i: self._pool.submit(self._pixels, samples[i]) for i in missing}
        readable = [(i, pixels) for i, job in jobs.items() if (pixels := job.result()) is not None]
        size = 1 if any(sample.alone for sample in samples) else self._encode_batch
        for start in range(0, len(readable), size):
            part = readable[start : start + size]
            latents = self._encode(torch.stack([pixels for _, pixels in part])).to(self._dtype).cpu()
            for (i, _), latent in zip(part, latents, strict=True):
                found[i] = self._keep(samples[i], latent)
        good = [latent for latent in found if latent is not None]
        if not good:
            raise DataError(f"no picture of this batch can be decoded: {', '.join(s.name for s in samples)}")
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

    def _kept(self, sample: LatentRef) -> torch.Tensor | None:
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
        except CacheError as error:  # damaged on disk: encode it anew
            self._tell(str(error))
            return None

    def _keep(self, sample: LatentRef, latent: torch.Tensor) -> torch.Tensor:
        store: TensorStore | None = sample.store
        if store is not None:
            self._writers.setdefault((id(store), sample.alone), store.writer()).add(sample.key, latent, sample.name)
        return latent

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
