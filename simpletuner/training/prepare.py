"""Rooms 1 and 2 for all datasets: every picture is found and placed, or skipped with its reason.

In: dataset sources in plain values. Out: their samples, by bucket; ``keeping`` fills the caches for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from simpletuner.data import undecodable
from simpletuner.data.cache import content_key
from simpletuner.data.captions import CaptionRules
from simpletuner.data.digests import digests
from simpletuner.data.discover import Discovery, discover
from simpletuner.data.encode import PlacedSample, latent_key, mask_key
from simpletuner.data.hub_dataset import TABLE, HubDataset, bring
from simpletuner.data.masks import UNUSABLE, MaskSource, by_name, check_size, mask_of
from simpletuner.data.mirror import RemoteSource, mirror
from simpletuner.data.placement import PlacementRules, place, possible_buckets
from simpletuner.data.sampler import Bucket, Drawing, shortfalls
from simpletuner.data.tables import TableSource, read_table
from simpletuner.data.tar_dataset import TarSource, unpack_all
from simpletuner.data.types import Sample, Size, Skipped
from simpletuner.data.url_list import UrlList, fetch
from simpletuner.errors import DataError, ImageError
from simpletuner.reporting.progress import Reporter
from simpletuner.wording import counted

LISTED = 5
MASKS = "masks"  # folder inside a dataset's cache


@dataclass(frozen=True, slots=True)
class DatasetSource:
    """One dataset entry in plain values.

    Attributes:
        id: The entry's id.
        folder: Where the pictures are; only read.
        captions: How captions are found.
        placement: Where pictures go.
        repeats: Extra passes per epoch.
        latent_dir: Where latents are kept.
        encode_batch: Pictures per VAE call.
        timestep_offset: Added to the normal draw before the sigmoid.
        caching: ``ahead``: all latents are encoded before training. ``ondemand``: when first needed, and kept.
            ``never``: whenever needed, and not kept.
        mask: Where its masks are, or None.
        table: The table of its captions, or None.
        hub: The Hugging Face dataset its files come from, or None.
        listed: The CSV file that lists where its files are, or None.
        tars: The tar files its files are in, or None.
        remote: Where its files come from, if not from this machine; ``folder`` is then their mirror.
        latent_remote: The URL above the twin of ``latent_dir``, or None.
        redraw: Random crops and aspects are drawn anew in each epoch.
        stride: Pixels per latent cell, for masks.
        max_samples: At most this many pictures are used, always the same ones; None for all.
    """

    id: str
    folder: Path
    captions: CaptionRules
    placement: PlacementRules
    repeats: int
    latent_dir: Path
    encode_batch: int
    timestep_offset: float = 0.0
    max_samples: int | None = None
    caching: Literal["ahead", "ondemand", "never"] = "ahead"
    mask: MaskSource | None = None
    table: TableSource | None = None
    remote: RemoteSource | None = None
    hub: HubDataset | None = None
    listed: UrlList | None = None
    tars: TarSource | None = None
    latent_remote: RemoteSource | None = None
    redraw: bool = False
    stride: int = 32


@dataclass(slots=True)
class Found:
    """One dataset after rooms 1 and 2.

    Attributes:
        source: The dataset.
        placed: What is used.
        skipped: What is not, and why.
        without_picture: Names in the user's table of captions that are no picture of the dataset.
    """

    source: DatasetSource
    placed: list[PlacedSample]
    skipped: list[Skipped]
    without_picture: list[str] = field(default_factory=list)


def _place_all(
    source: DatasetSource, discovery: Discovery, reporter: Reporter
) -> tuple[list[PlacedSample], list[Skipped]]:
    """Room 2 for one dataset; files that cannot be read after all are skipped."""
    samples, surplus = _subset(source, discovery.samples)
    paths = [sample.path for sample in samples]
    known = digests(paths, source.latent_dir, partial(reporter.track, f"Reading pictures [{source.id}]"))
    masks = by_name(source.mask.folder) if source.mask else {}
    known_masks = digests(list(masks.values()), source.latent_dir / MASKS) if masks else {}
    broken_masks = undecodable.known(source.latent_dir / MASKS) if masks else {}
    ahead = source.caching == "ahead" and not source.redraw  # else the plan has others stand in for them
    broken = undecodable.known(source.latent_dir) if ahead else {}
    placed, skipped = [], surplus
    for sample in samples:
        if sample.path not in known or known[sample.path] in broken:
            reason = broken.get(known.get(sample.path, ""), "it cannot be read")
            skipped.append(Skipped(sample.path, reason))
            continue
        placement = place(sample.size, source.placement, _seed(source, sample))
        key = latent_key(known[sample.path], placement)
        found = PlacedSample(sample, placement, key, digest=known[sample.path])
        try:
            placed.append(_with_mask(found, source, masks, known_masks, broken_masks))
        except ImageError as error:
            skipped.append(Skipped(sample.path, str(error)))
    return placed, skipped


def _seed(source: DatasetSource, sample: Sample, epoch: int = 0) -> int:
    """A random crop depends on dataset and file name alone, so that every run finds its cache again; and on the epoch."""
    name = sample.path.relative_to(source.folder)
    return int(content_key(source.id, name, *([epoch] if epoch else []))[:12], 16)


def place_in(source: DatasetSource, placed: PlacedSample, epoch: int) -> PlacedSample:
    """A sample's place in an epoch (from 0) of a dataset with ``redraw``."""
    placement = place(placed.sample.size, source.placement, _seed(source, placed.sample, epoch))
    return replace(placed, placement=placement, key=latent_key(placed.digest, placement))


def longest_side(found: Sequence[Found]) -> int:
    """The longest side in pixels of any picture, also where a later epoch may draw another aspect."""
    buckets: set[Size] = set()
    for item in found:
        if item.source.redraw:
            sizes = {placed.sample.size for placed in item.placed}
            buckets.update(*(possible_buckets(size, item.source.placement) for size in sizes))
        else:
            buckets.update(placed.placement.bucket for placed in item.placed)
    return max(max(bucket) for bucket in buckets)


def _bring(source: DatasetSource, reporter: Reporter) -> list[Skipped]:
    """Fetch what is new of a remote dataset; returns what was left where it is."""
    track = partial(reporter.track, f"Fetching [{source.id}]")
    if source.hub:
        done, where = bring(source.hub, source.folder, track), source.hub.name
    elif source.listed:
        done, where = fetch(source.listed, source.folder, track), str(source.listed.file)
    elif source.tars:
        done, where = unpack_all(source.tars, source.folder, track), source.tars.place.partition("?")[0]
    elif source.remote:
        done, where = mirror(source.remote, source.folder, track), source.remote.url
    else:
        return []
    reporter.say(
        done.note
        or f"[{source.id}] {where}: {counted(done.fetched, 'file')} fetched, {counted(done.kept, 'was', 'were')} here already"
        + (f", {counted(done.removed, 'was', 'were')} removed here as no longer listed there" if done.removed else "")
    )
    return list(done.skipped)


def _subset(source: DatasetSource, samples: Sequence[Sample]) -> tuple[list[Sample], list[Skipped]]:
    """``max_num_samples``: a random subset that depends on the dataset's id and the file names alone."""
    limit = source.max_samples
    if not limit or len(samples) <= limit:
        return list(samples), []
    ranked = sorted(samples, key=lambda s: content_key(source.id, s.path.relative_to(source.folder)))
    chosen = {sample.path for sample in ranked[:limit]}
    left_out = [Skipped(s.path, f"left out by max_num_samples {limit}") for s in samples if s.path not in chosen]
    return [s for s in samples if s.path in chosen], left_out


def _with_mask(
    placed: PlacedSample,
    source: DatasetSource,
    masks: Mapping[tuple[str, ...], Path],
    known: Mapping[Path, str],
    broken: Mapping[str, str],
) -> PlacedSample:
    """The sample with its mask; ``known`` has the masks' digests, ``broken`` what earlier runs could not decode of them.

    Raises:
        ImageError: The dataset has masks, and this picture's is missing or unfit.
    """
    if source.mask is None:
        return placed
    mask = mask_of(placed.sample.path, source.folder, masks)
    if mask is None or mask not in known:
        raise ImageError(
            f"it has no mask of the same name in {source.mask.folder} (conditioning_data {source.mask.id})"
        )
    if known[mask] in broken:
        raise ImageError(f"{UNUSABLE}: {broken[known[mask]]}")
    check_size(mask, placed.sample.size)
    key = mask_key(known[mask], placed.placement, source.mask.kind, source.stride)
    return replace(placed, mask=mask, mask_key=key, mask_digest=known[mask])


def find(sources: Sequence[DatasetSource], reporter: Reporter) -> list[Found]:
    """Rooms 1 and 2: every file ends as used or as skipped with its reason, and the sums are printed.

    Raises:
        DataError: Datasets have no usable picture; all of them, but nothing more is fetched after the first.
    """
    found: list[Found] = []
    unusable: list[str] = []
    for source in sources:
        if unusable and (source.hub or source.listed or source.tars or source.remote):
            continue
        try:
            found.append(find_in(source, reporter))
            tell_sum(found[-1], reporter)
            tell_skipped(source.id, found[-1].skipped, reporter)
            refuse_empty(found[-1])
        except DataError as error:
            unusable.append(str(error))
    if len(unusable) > 1:
        listed = "".join(f"\n  {number}. {reason}" for number, reason in enumerate(unusable, 1))
        raise DataError(f"{len(unusable)} datasets cannot be used:{listed}")
    if unusable:
        raise DataError(unusable[0])
    return found


def find_in(source: DatasetSource, reporter: Reporter) -> Found:
    """Rooms 1 and 2 of one dataset; its sums are not printed yet, and it may be empty.

    Raises:
        DataError: Its folder cannot be looked at.
    """
    try:
        elsewhere, discovery, without_picture = _look(source, reporter)
    except DataError as error:
        raise DataError(f"[{source.id}] {error}") from error
    placed, unread = _place_all(source, discovery, reporter)
    skipped = sorted([*elsewhere, *discovery.skipped, *unread], key=lambda item: not item.picture)
    return Found(source, placed, skipped, without_picture)


def refuse_empty(item: Found) -> None:
    """Raises DataError where no picture can be used."""
    if item.placed:
        return
    left = counted(len(item.skipped), "file was skipped that is", "files were skipped that are")
    raise DataError(
        f"[{item.source.id}] no images detected in dataset that can be used: {left} in "
        f"{item.source.folder}, the first, {item.skipped[0].path.name}, because {item.skipped[0].reason}. "
        "What to do: mend that, or leave this dataset out with disabled true in the dataloader file."
    )


def _look(source: DatasetSource, reporter: Reporter) -> tuple[list[Skipped], Discovery, list[str]]:
    """Room 1 of one dataset: what was left elsewhere, what is in its folder, and rows of its table that have no picture."""
    track = partial(reporter.track, f"Looking at pictures [{source.id}]")
    elsewhere = _bring(source, reporter)
    captions = source.captions
    known = [source.folder / TABLE] if source.hub or source.listed or source.tars else []
    if source.table:
        captions = replace(captions, table=read_table(source.table, source.folder))
        known.append(source.table.path)
    discovery = discover(source.folder, captions, source.placement, track, known)
    # One that was written here lists what was to be fetched, which is told above.
    if captions.table is None or captions.table.source.path == source.folder / TABLE:
        return elsewhere, discovery, []
    looked_at = [sample.path for sample in discovery.samples]
    looked_at += [skipped.path for skipped in discovery.skipped if skipped.picture]
    return elsewhere, discovery, captions.table.without_picture(looked_at)


def tell_sum(item: Found, reporter: Reporter, why: str = "") -> None:
    """Print how many pictures were found, how many of them are used (the others are skipped), and which rows of its table name none.

    Args:
        item: The dataset.
        reporter: Where to print.
        why: What has changed since the sum was told before.
    """
    counts = Counter(p.placement.bucket for p in item.placed)
    buckets = ", ".join(f"{size} × {count}" for size, count in sorted(counts.items()))
    others = sum(not skipped.picture for skipped in item.skipped)
    total = len(item.placed) + len(item.skipped) - others
    beside = f"; {counted(others, 'other file')}" if others else ""
    reporter.say(
        f"[{item.source.id}] {counted(total, 'picture')} found, {len(item.placed)} used ({buckets}){beside}{why}"
    )
    if item.without_picture and item.source.table and not why:
        names = item.without_picture
        listed = ", ".join(names[:LISTED]) + (" …" if len(names) > LISTED else "")
        ghosts = counted(len(names), "picture that is", "pictures that are")
        reporter.say(
            f"[{item.source.id}] {item.source.table.path.name} names {ghosts} not in {item.source.folder}: {listed}"
        )


def tell_skipped(dataset_id: str, skipped: Sequence[Skipped], reporter: Reporter) -> None:
    """Print the first few skipped files with their reasons, and how many more there are."""
    for item in skipped[:LISTED]:
        reporter.say(f"[{dataset_id}] skipped {item.path.name}: {item.reason}")
    if len(skipped) > LISTED:
        reporter.say(f"[{dataset_id}] … and {len(skipped) - LISTED} more skipped")


def buckets_of(found: Sequence[Found]) -> tuple[list[Bucket], list[PlacedSample]]:
    """All buckets of all datasets, and the list that their members index."""
    buckets: list[Bucket] = []
    everything: list[PlacedSample] = []
    for item in found:
        members: dict[Size, list[int]] = {}
        for placed in item.placed:
            members.setdefault(placed.placement.bucket, []).append(len(everything))
            everything.append(placed)
        for size, indices in sorted(members.items()):
            buckets.append(Bucket(item.source.id, size, tuple(indices), item.source.repeats))
    return buckets, everything


def check_sizes(found: Sequence[Found], drawing: Drawing, allow: bool, reporter: Reporter) -> None:
    """Refuse buckets too small for one optimizer step, all of them in one error.

    Args:
        found: Training datasets.
        drawing: Batch sizes, accumulation and ranks.
        allow: ``allow_dataset_oversubscription``: fill such buckets with repeated pictures instead, and say so.
        reporter: For the sentence when allowed.

    Raises:
        DataError: At least one bucket is too small.
    """
    sentences = shortfalls(buckets_of(found)[0], drawing)
    if not sentences:
        return
    if allow:
        for sentence in sentences:
            reporter.say(
                f"{sentence.split(': set')[0]}: filled with repeated pictures (allow_dataset_oversubscription)"
            )
        return
    listed = "\n  ".join(sentences)
    processes = f" × num_processes {drawing.world_size}" if drawing.world_size > 1 else ""
    raise DataError(
        f"too few pictures for train_batch_size {drawing.batch_size} × "
        f"gradient_accumulation_steps {drawing.accumulation}{processes}:\n  {listed}\n"
        "What to do: set repeats in the dataloader file, or lower train_batch_size, as named; "
        "or set allow_dataset_oversubscription to true."
    )
