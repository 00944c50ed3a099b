"""Room 4, Encode: pixels become latents, captions become text embeds, both kept in a TensorStore.

In: samples with placements; captions; two encoding functions. Out: filled stores. Only what is missing is encoded;
decoding runs ahead on threads, and writing behind, while the encoder works. Knows no model: the functions are handed in.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from simpletuner.data.cache import ShardWriter, TensorStore, content_key
from simpletuner.data.images import cut
from simpletuner.data.linear_rgb import ENOUGH
from simpletuner.data.masks import MaskKind, weights
from simpletuner.data.types import Placement, Sample, Skipped
from simpletuner.errors import ImageError

# Decoding leaves the interpreter free (Pillow and torch release its lock), so threads do what processes would, without
# copying pixels between them; figures in bench/RESULTS.md. One for each core, and some for waiting on the disk.
DECODE_THREADS = min(16, 2 + (os.cpu_count() or 1))
TEXT_BATCH = 16  # captions per call of the text encoder
DECODER = "pixels-2"  # raise it when data/images.py gives other pixels for the same file


@dataclass(frozen=True, slots=True)
class PlacedSample:
    """A sample with its place and the key of its latents; its mask and that mask's key, if there is one.

    ``digest`` is that of the file's bytes, from which other places have other keys; ``mask_digest`` that of the mask's.
    """

    sample: Sample
    placement: Placement
    key: str
    mask: Path | None = None
    mask_key: str = ""
    digest: str = ""
    mask_digest: str = ""


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
    seen: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
) -> list[Skipped]:
    """Encode pictures that are missing in ``store``.

    Args:
        placed: What to encode; see ``missing_latents``.
        store: Where to.
        encode: [B, 3, H, W] in [-1, 1] → [B, C, h, w].
        dtype: Dtype on disk.
        batch_size: Pictures per call of ``encode``.
        on_done: Called with the number of pictures finished.
        seen: Shown the latents [n, C, h, w] and pixels [n, 3, H, W] of about ``ENOUGH`` of them, evenly chosen.

    Returns:
        Pictures that could not be decoded, with the reason; the others are encoded all the same.
    """
    skipped: list[Skipped] = []
    shown = {p.key for p in placed[:: -(-len(placed) // ENOUGH) or 1]} if seen else set()
    with decoding_threads() as pool, store.writer() as writer:
        before: _Encoded | None = None
        for good, pixels, broken in _decoded_ahead(pool, placed, batch_size):
            skipped += broken
            # A GPU works on this batch while the one before is checked and written, and the next are decoded.
            now = _Encoded.start(good, encode(torch.stack(pixels)).to(dtype), broken) if good else None
            if now and seen:
                now.pixels = {n: pixels[n] for n, p in enumerate(good) if p.key in shown}
            if before:
                before.keep(writer, on_done, seen)
            before = now
            if not good:
                on_done(len(broken))
        if before:
            before.keep(writer, on_done, seen)
    return skipped


def decoding_threads(name: str = "decode") -> ThreadPoolExecutor:
    """``DECODE_THREADS`` threads for pictures, each with one thread of torch's own: together they have every core.

    Left to itself each would resize with as many as there are cores, and they would wait for one another. The number is
    a thread's own, but PyTorch gives the last one set to threads that come later: so all are started here, and the
    caller's is set again.
    """
    usual, all_there = torch.get_num_threads(), threading.Barrier(DECODE_THREADS)
    pool = ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix=name)

    def settle() -> None:
        torch.get_num_threads()  # a thread's first look takes the process's number: later it would undo the next line
        torch.set_num_threads(1)
        all_there.wait()

    for started in [pool.submit(settle) for _ in range(DECODE_THREADS)]:
        started.result()
    torch.set_num_threads(usual)
    return pool


def _decoded_ahead(
    pool: ThreadPoolExecutor, placed: Sequence[PlacedSample], batch_size: int
) -> Iterator[tuple[list[PlacedSample], list[torch.Tensor], list[Skipped]]]:
    """Batches in order, decoded: samples, their pixels [3, H, W], and those that could not be decoded.

    Enough batches wait that no thread ever does; a batch of 1024 px pictures takes 12 MB a picture.
    """
    waiting: deque[tuple[list[PlacedSample], list[Future[torch.Tensor]]]] = deque()
    batches = _batches(placed, batch_size)
    ahead = 1 + -(-2 * DECODE_THREADS // batch_size)
    while True:
        while len(waiting) < ahead and (batch := next(batches, None)):
            waiting.append((batch, [pool.submit(cut, p.sample.path, p.placement) for p in batch]))
        if not waiting:
            return
        good: list[PlacedSample] = []
        pixels: list[torch.Tensor] = []
        broken: list[Skipped] = []
        for item, future in zip(*waiting.popleft(), strict=True):
            try:
                pixels.append(future.result())
                good.append(item)
            except ImageError as error:
                broken.append(Skipped(item.sample.path, str(error)))
        yield good, pixels, broken


@dataclass(slots=True)
class _Encoded:
    """One batch of latents on its way from the device to the disk; with the pixels of those that are to be shown."""

    samples: list[PlacedSample]
    latents: torch.Tensor
    arrived: torch.cuda.Event | None
    finished: int
    pixels: dict[int, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def start(cls, samples: list[PlacedSample], latents: torch.Tensor, broken: Sequence[Skipped]) -> _Encoded:
        """Begin the copy to main memory; behind the next batch's work in the queue it would wait for that."""
        arrived = None
        if latents.is_cuda:
            latents = latents.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return cls(samples, latents, arrived, len(samples) + len(broken))

    def keep(
        self,
        writer: ShardWriter,
        on_done: Callable[[int], None],
        seen: Callable[[torch.Tensor, torch.Tensor], None] | None,
    ) -> None:
        """Hand the latents to the writer, once they are here."""
        if self.arrived:
            self.arrived.synchronize()
        for item, latent in zip(self.samples, self.latents, strict=True):
            writer.add(item.key, latent, str(item.sample.path))
        if seen and self.pixels:
            seen(self.latents[list(self.pixels)], torch.stack(list(self.pixels.values())))
        on_done(self.finished)


def keep_masks(
    placed: Sequence[PlacedSample],
    store: TensorStore,
    kind: MaskKind,
    stride: int,
    on_done: Callable[[int], None],
) -> dict[str, str]:
    """Loss weights of pictures whose masks are missing in ``store``.

    Returns:
        Why, by ``mask_key``, for masks that cannot be decoded.
    """
    reasons: dict[str, str] = {}
    with decoding_threads() as pool, store.writer() as writer:
        jobs = [(p, pool.submit(weights, p.mask, p.placement, kind, stride)) for p in placed if p.mask]
        for item, job in jobs:
            try:
                writer.add(item.mask_key, job.result(), str(item.mask))
            except ImageError as error:
                reasons[item.mask_key] = str(error)
            on_done(1)
    return reasons


def mask_key(digest: str, placement: Placement, kind: MaskKind, stride: int) -> str:
    """Content key of one mask's weights."""
    return content_key(DECODER, "mask", digest, placement.resize_to, placement.crop_box, kind, stride)


def encode_texts(
    captions: Sequence[str],
    store: TensorStore,
    encode: Callable[[list[str]], list[torch.Tensor]],
    dtype: torch.dtype,
    on_done: Callable[[int], None],
    batch_size: int = TEXT_BATCH,
) -> None:
    """Encode distinct captions that are missing in ``store``.

    Args:
        captions: Any order; repeats cost nothing.
        store: Where to.
        encode: Captions → one [n, D] tensor each, real tokens only.
        dtype: Dtype on disk.
        on_done: Called with the number of captions finished.
        batch_size: Captions per call of ``encode``.
    """
    wanted = [c for c in dict.fromkeys(captions) if text_key(c) not in store]
    with store.writer() as writer:
        for caption, embeds in embeds_of(wanted, encode, dtype, batch_size):
            writer.add(text_key(caption), embeds, f"the caption {caption[:60]!r}")
            on_done(1)


def embeds_of(
    captions: Sequence[str],
    encode: Callable[[list[str]], list[torch.Tensor]],
    dtype: torch.dtype,
    batch_size: int = TEXT_BATCH,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Each caption with its embeds [n, D] on the CPU.

    On a CPU the bits do not depend on the company: every caption is padded to the same number of tokens.
    """
    for start in range(0, len(captions), batch_size):
        batch = list(captions[start : start + batch_size])
        for caption, embeds in zip(batch, encode(batch), strict=True):
            yield caption, embeds.to(dtype).cpu()
