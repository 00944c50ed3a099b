"""Room 4, Encode: pixels become latents, captions become text embeds, both kept in a TensorStore.

In: samples with placements; captions; two encoding functions. Out: filled stores. Only what is missing is encoded;
decoding runs ahead on threads while the encoder works. Knows no model: the functions are handed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from simpletuner.data.cache import TensorStore, content_key
from simpletuner.data.images import cut
from simpletuner.data.masks import MaskKind, weights
from simpletuner.data.types import Placement, Sample, Skipped
from simpletuner.errors import ImageError

DECODE_THREADS = 4
DECODER = "pixels-1"  # raise it when data/images.py gives other pixels for the same file


@dataclass(frozen=True, slots=True)
class PlacedSample:
    """A sample with its place and the key of its latents; its mask and that mask's key, if there is one."""

    sample: Sample
    placement: Placement
    key: str
    mask: Path | None = None
    mask_key: str = ""


def latent_key(digest: str, placement: Placement) -> str:
    """Content key of one picture's latents: its bytes (``digests``) and its place. Names and folders do not matter."""
    return content_key(DECODER, digest, placement.resize_to, placement.crop_box)


def text_key(caption: str) -> str:
    """Content key of one caption; everything else that matters is in the store's fingerprint."""
    return content_key("caption", caption)


def missing_latents(placed: Sequence[PlacedSample], store: TensorStore) -> list[PlacedSample]:
    """Those not in the store yet, grouped by bucket so that batches are full; each key once."""
    unique = {p.key: p for p in placed if p.key not in store}
    return sorted(unique.values(), key=lambda p: (p.placement.bucket, str(p.sample.path)))


def _batches(placed: Sequence[PlacedSample], batch_size: int) -> Iterator[list[PlacedSample]]:
    batch: list[PlacedSample] = []
    for item in placed:
        if batch and (len(batch) == batch_size or item.placement.bucket != batch[0].placement.bucket):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def encode_latents(
    placed: Sequence[PlacedSample],
    store: TensorStore,
    encode: Callable[[torch.Tensor], torch.Tensor],
    dtype: torch.dtype,
    batch_size: int,
    on_done: Callable[[int], None],
) -> list[Skipped]:
    """Encode pictures that are missing in ``store``.

    Args:
        placed: What to encode; see ``missing_latents``.
        store: Where to.
        encode: [B, 3, H, W] in [-1, 1] → [B, C, h, w].
        dtype: Dtype on disk.
        batch_size: Pictures per call of ``encode``.
        on_done: Called with the number of pictures finished.

    Returns:
        Pictures that could not be decoded, with the reason; the others are encoded all the same.
    """
    skipped: list[Skipped] = []
    with ThreadPoolExecutor(DECODE_THREADS) as pool, store.writer() as writer:
        waiting: deque[tuple[list[PlacedSample], list[Future[torch.Tensor]]]] = deque()
        batches = _batches(placed, batch_size)
        while True:
            while len(waiting) < 2 and (batch := next(batches, None)):
                waiting.append((batch, [pool.submit(cut, p.sample.path, p.placement) for p in batch]))
            if not waiting:
                return skipped
            batch, futures = waiting.popleft()
            good: list[PlacedSample] = []
            pixels: list[torch.Tensor] = []
            for item, future in zip(batch, futures, strict=True):
                try:
                    pixels.append(future.result())
                    good.append(item)
                except ImageError as error:
                    skipped.append(Skipped(item.sample.path, str(error)))
            if good:
                latents = encode(torch.stack(pixels)).to(dtype)
                for item, latent in zip(good, latents, strict=True):
                    writer.add(item.key, latent, str(item.sample.path))
            on_done(len(batch))


def keep_masks(
    placed: Sequence[PlacedSample],
    store: TensorStore,
    kind: MaskKind,
    stride: int,
    on_done: Callable[[int], None],
) -> list[Skipped]:
    """Loss weights of pictures whose masks are missing in ``store``.

    Returns:
        Pictures whose mask cannot be decoded, with the reason.
    """
    skipped: list[Skipped] = []
    with ThreadPoolExecutor(DECODE_THREADS) as pool, store.writer() as writer:
        jobs = [(p, pool.submit(weights, p.mask, p.placement, kind, stride)) for p in placed if p.mask]
        for item, job in jobs:
            try:
                writer.add(item.mask_key, job.result(), str(item.mask))
            except ImageError as error:
                skipped.append(Skipped(item.sample.path, f"its mask cannot be used: {error}"))
            on_done(1)
    return skipped


def mask_key(digest: str, placement: Placement, kind: MaskKind, stride: int) -> str:
    """Content key of one mask's weights."""
    return content_key(DECODER, "mask", digest, placement.resize_to, placement.crop_box, kind, stride)


def encode_texts(
    captions: Sequence[str],
    store: TensorStore,
    encode: Callable[[list[str]], list[torch.Tensor]],
    dtype: torch.dtype,
    batch_size: int,
    on_done: Callable[[int], None],
) -> None:
    """Encode distinct captions that are missing in ``store``.

    Args:
        captions: Any order; repeats cost nothing.
        store: Where to.
        encode: Captions → one [n, D] tensor each, real tokens only.
        dtype: Dtype on disk.
        batch_size: Captions per call of ``encode``.
        on_done: Called with the number of captions finished.
    """
    wanted = [c for c in dict.fromkeys(captions) if text_key(c) not in store]
    with store.writer() as writer:
        for start in range(0, len(wanted), batch_size):
            batch = wanted[start : start + batch_size]
            for caption, embeds in zip(batch, encode(batch), strict=True):
                writer.add(text_key(caption), embeds.to(dtype), f"the caption {caption[:60]!r}")
            on_done(len(batch))
