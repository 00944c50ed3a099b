"""Room 4 for all datasets: latents, loss weights and text embeds are encoded where they are missing, and kept.

In: what ``prepare`` found. Out: references to samples whose tensors are in the cache, and a filled store of captions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch

from simpletuner.data import undecodable
from simpletuner.data.cache import TensorStore
from simpletuner.data.encode import PlacedSample, encode_latents, encode_texts, keep_masks, missing_latents, text_key
from simpletuner.data.healing import MASKS_ANEW, Healing
from simpletuner.data.linear_rgb import Gathered
from simpletuner.data.loader import LatentRef
from simpletuner.data.masks import UNUSABLE, weights
from simpletuner.data.mirror import RemoteSource
from simpletuner.data.remote_cache import RemoteCaches
from simpletuner.data.types import Skipped
from simpletuner.errors import DataError, ImageError
from simpletuner.reporting.progress import Reporter
from simpletuner.training import prepare
from simpletuner.training.ranks import Ranks
from simpletuner.wording import counted

Refs = dict[tuple[str, Path], LatentRef]


def keep_latents(
    found: Sequence[prepare.Found],
    fingerprint: str,
    encode: Callable[[torch.Tensor], torch.Tensor],
    dtype: torch.dtype,
    reporter: Reporter,
    caches: RemoteCaches | None = None,
    ranks: Ranks | None = None,
) -> Refs:
    """Room 4 for pictures: encode what is missing; pictures that cannot be decoded are dropped from ``found``.

    Args:
        found: Datasets; changed in place.
        fingerprint: Names the folder inside each ``latent_dir``.
        encode: Pixels → latents.
        dtype: Dtype on disk.
        reporter: For the bar.
        caches: For caches with a twin behind a URL.
        ranks: Processes that share the work; those of one machine encode a part each.

    Returns:
        Where each sample's latents are, by dataset id and path. Equal pictures share latents, never captions.
    """
    stores: dict[Path, TensorStore] = {}
    ranks = ranks or Ranks()
    refs: Refs = {}
    for item in found:
        if item.source.caching == "never":
            _refer(item, None, refs, reporter, ranks)
            continue
        folder = item.source.latent_dir / fingerprint
        if folder not in stores:
            stores[folder] = open_store(folder, item.source.latent_remote, caches, ranks)
        store = stores[folder]
        distinct = _tell_store(item, store, reporter)
        missing = missing_latents(item.placed, store)
        if item.source.redraw:
            reporter.say(f"[{item.source.id}] places are drawn anew in each epoch; latents are encoded when needed")
        elif missing and item.source.caching == "ondemand":
            reporter.say(f"[{item.source.id}] {counted(len(missing), 'latent')} will be encoded when first needed")
        elif item.source.caching == "ahead" and ranks.any(bool(missing)):
            skipped = _encode_missing(item, missing, store, encode, dtype, reporter, ranks)
            if ranks.several:  # what the others have written
                store = stores[folder] = open_store(folder, item.source.latent_remote, caches, ranks)
            _leave_out(item, skipped, reporter)
        else:
            reporter.say(f"[{item.source.id}] all {counted(distinct, 'latent is', 'latents are')} in the cache")
        _refer(item, store, refs, reporter, ranks)
        if not item.placed:
            raise DataError(
                f"[{item.source.id}] none of its pictures could be decoded: see above why. What to do: replace these files, or "
                "leave this dataset out with disabled true in the dataloader file."
            )
    return refs


def open_store(folder: Path, remote: RemoteSource | None, caches: RemoteCaches | None, ranks: Ranks) -> TensorStore:
    """A store that all processes see alike; the first of each machine drops what is damaged, and knows the URL."""
    with ranks.first():
        return caches.open(folder, None if ranks.local else remote) if caches else TensorStore(folder)


def _tell_store(item: prepare.Found, store: TensorStore, reporter: Reporter) -> int:
    """Say what of the cache was damaged, once, and how many pictures are copies; returns how many are not."""
    for shard in store.dropped:
        reporter.say(f"{shard} was damaged and is encoded anew")
    store.dropped.clear()
    distinct = len({p.key for p in item.placed})
    if copies := len(item.placed) - distinct:
        reporter.say(
            f"[{item.source.id}] {counted(copies, 'picture is a copy and shares', 'pictures are copies and share')} the latents of another"
        )
    return distinct


def _encode_missing(
    item: prepare.Found,
    missing: Sequence[PlacedSample],
    store: TensorStore,
    encode: Callable[[torch.Tensor], torch.Tensor],
    dtype: torch.dtype,
    reporter: Reporter,
    ranks: Ranks,
) -> list[Skipped]:
    """Encode a part in each process of a machine; returns what could not be decoded, in whichever process."""
    colours = Gathered()  # for previews, should they be wanted
    part = ranks.part(missing)
    with reporter.bar(f"Encoding pictures [{item.source.id}]{_shared(ranks)}", len(part)) as bar:
        skipped = encode_latents(part, store, encode, dtype, item.source.encode_batch, bar.advance, colours)
    if not ranks.local:
        colours.keep(store.folder)
    return list(chain(*ranks.of_all(skipped)))


def _shared(ranks: Ranks) -> str:
    return f", a part in each of {ranks.local_world} processes" if ranks.local_world > 1 else ""


def _leave_out(item: prepare.Found, broken: Sequence[Skipped], reporter: Reporter) -> None:
    """Skip the pictures that could not be decoded, with their copies; remember them, and print the new sum."""
    if not broken:
        return
    reasons = {skipped.path: skipped.reason for skipped in broken}
    failures = [(p.sample.path, p.digest, reasons[p.sample.path]) for p in item.placed if p.sample.path in reasons]
    undecodable.remember(item.source.latent_dir, failures)
    by_digest = {digest: reason for _, digest, reason in failures}
    skipped = [Skipped(p.sample.path, by_digest[p.digest]) for p in item.placed if p.digest in by_digest]
    item.placed = [p for p in item.placed if p.digest not in by_digest]
    item.skipped += skipped
    prepare.tell_skipped(item.source.id, skipped, reporter)
    prepare.tell_sum(item, reporter, f"; {counted(len(skipped), 'picture')} cannot be decoded")


def _refer(item: prepare.Found, store: TensorStore | None, refs: Refs, reporter: Reporter, ranks: Ranks) -> None:
    """Enter a dataset's samples, with their masks, into ``refs``."""
    with ranks.first() if item.source.mask else contextlib.nullcontext():
        masks = _keep_masks(item, reporter)
    for p in item.placed:
        mask = (masks, p.mask_key, item.source.mask.probability) if masks and item.source.mask else None
        name = str(p.sample.path)
        refs[item.source.id, p.sample.path] = LatentRef(
            name, store, p.key, p.sample.captions, mask, p, memory=item.source.latent_dir
        )


def _keep_masks(item: prepare.Found, reporter: Reporter) -> Healing | None:
    """A dataset's loss weights, all of them kept; None if it has no masks. Pictures without a usable mask are skipped."""
    source = item.source.mask
    if source is None:
        return None
    store = TensorStore(item.source.latent_dir / prepare.MASKS)
    for shard in store.dropped:
        reporter.say(f"{shard} was damaged: its masks are read anew")
    made_from = {p.mask_key: p for p in item.placed}
    missing = [p for p in made_from.values() if p.mask_key not in store]
    if missing:
        with reporter.bar(f"Reading masks [{item.source.id}]", len(missing), quiet_s=1.0) as bar:
            reasons = keep_masks(missing, store, source.kind, item.source.stride, bar.advance)
        _leave_out_masks(item, reasons, reporter)

    def anew(keys: Sequence[str]) -> dict[str, torch.Tensor]:
        fresh = {}
        for key in keys:
            p = made_from.get(key)
            if p and p.mask:
                with contextlib.suppress(ImageError):  # it was readable when it was cached: the next run skips it
                    fresh[key] = weights(p.mask, p.placement, source.kind, item.source.stride)
        return fresh

    return Healing(store, anew, MASKS_ANEW, reporter.say)


def _leave_out_masks(item: prepare.Found, reasons: Mapping[str, str], reporter: Reporter) -> None:
    """Skip the pictures whose masks could not be decoded; remember these masks, and print the new sum."""
    without = [p for p in item.placed if p.mask_key in reasons]
    if not without:
        return
    failures = [(p.mask, p.mask_digest, reasons[p.mask_key]) for p in without if p.mask]
    undecodable.remember(item.source.latent_dir / prepare.MASKS, failures)
    skipped = [Skipped(p.sample.path, f"{UNUSABLE}: {reasons[p.mask_key]}") for p in without]
    item.skipped += skipped
    item.placed = [p for p in item.placed if p.mask_key not in reasons]
    prepare.tell_skipped(item.source.id, skipped, reporter)
    prepare.tell_sum(item, reporter, f"; the {counted(len(skipped), 'mask')} of as many cannot be decoded")


def captions_of(found: Sequence[prepare.Found]) -> list[str]:
    """All captions of all pictures."""
    return [c for item in found for p in item.placed for c in p.sample.captions]


def keep_texts(
    found: Sequence[prepare.Found],
    store: TensorStore,
    encode: Callable[[list[str]], list[torch.Tensor]],
    dtype: torch.dtype,
    extra: Sequence[str],
    reporter: Reporter,
    ranks: Ranks | None = None,
) -> bool:
    """Room 4 for captions: each distinct caption once, plus ``extra``; a part in each process of a machine.

    Returns:
        Whether other processes have written too.
    """
    ranks = ranks or Ranks()
    captions = list(dict.fromkeys([*extra, *captions_of(found)]))
    missing = [caption for caption in captions if text_key(caption) not in store]
    if not ranks.any(bool(missing)):
        reporter.say(f"all {counted(len(captions), 'distinct caption is', 'distinct captions are')} in the cache")
        return False
    part = ranks.part(missing)
    with reporter.bar(f"Encoding captions{_shared(ranks)}", len(part)) as bar:
        encode_texts(part, store, encode, dtype, bar.advance)
    ranks.wait()
    return ranks.several
