"""Rules between the fields of one entry of the dataloader file, and between entries: pure functions, read by ``dataloader``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from simpletuner.config.checking import nearest
from simpletuner.config.datasets import ImageDataset, MaskDataset, TextEmbedsDataset
from simpletuner.config.noise_rules import density_of
from simpletuner.config.options import Options
from simpletuner.errors import Row

Entry = ImageDataset | MaskDataset | TextEmbedsDataset
TAR = re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz))$", re.IGNORECASE)


def problems(entry: ImageDataset, options: Options) -> Iterator[Row]:
    """Rows (key, value, reason, remedy) about one entry, each of whose fields is already right by itself."""
    yield from _places(entry, options)
    yield from _captions(entry)
    yield from _sizes(entry)
    density = density_of(options.flow)
    if entry.timestep_sampling_offset and density != "logit_normal":
        value, reason = entry.timestep_sampling_offset, f"the {density} density has no normal draw to move"
        yield ("timestep_sampling_offset", value, reason, "remove it, or keep the logit-normal density")
    if entry.conditioning_data and entry.type in ("csv", "webdataset"):
        reason = f"masks are found by file name, and pictures of type {entry.type} get names of their own here"
        yield ("conditioning_data", entry.conditioning_data, reason, "put pictures and masks into folders")


def _places(entry: ImageDataset, options: Options) -> Iterator[Row]:
    """Where it reads and writes: nothing is written into picture folders, neither results nor caches."""
    folder = str(entry.instance_data_dir)
    if not entry.source_url and not entry.instance_data_dir.expanduser().is_dir():
        if TAR.search(folder):
            reason = "type local reads a folder, and this names tar files"
            yield ("instance_data_dir", folder, reason, "set type and caption_strategy to webdataset")
        else:
            yield ("instance_data_dir", folder, "there is no such folder", "make it or correct it")
    if entry.id in (".", "..") or "/" in entry.id or "\\" in entry.id:
        yield ("id", entry.id, "it names folders and files, so it must not be a path", "use letters, digits, - and _")
    pictures = entry.instance_data_dir.expanduser().resolve()
    for key, place in (("output_dir", options.checkpoints.output_dir), ("cache_dir_vae", entry.cache_dir_vae)):
        if place.expanduser().resolve().is_relative_to(pictures):
            reason = f"{key} {str(place)!r} lies inside it: what is written there would be trained on"
            yield ("instance_data_dir", folder, reason, f"choose another {key}")


def _wants_prompt(entry: ImageDataset) -> bool:
    prompted = entry.prepend_instance_prompt or entry.only_instance_prompt
    return prompted or entry.caption_strategy == "instanceprompt"


def _captions(entry: ImageDataset) -> Iterator[Row]:
    if _wants_prompt(entry) and not entry.instance_prompt:
        yield ("instance_prompt", entry.instance_prompt, "it is needed here and empty", "name your subject")
    if entry.caption_strategy == "parquet" and entry.parquet is None:
        yield ("parquet", None, "caption_strategy parquet needs it", 'for example {"path": "captions.parquet"}')


def _sizes(entry: ImageDataset) -> Iterator[Row]:
    if entry.crop and entry.crop_aspect in ("closest", "random") and not entry.crop_aspect_buckets:
        reason = f"crop_aspect {entry.crop_aspect} needs a list"
        yield ("crop_aspect_buckets", None, reason, "for example [1.0, 0.75, 1.33]")
    for key, other in (
        ("maximum_image_size", "target_downsample_size"),
        ("target_downsample_size", "maximum_image_size"),
    ):
        if getattr(entry, key) and not getattr(entry, other):
            yield (key, getattr(entry, key), f"it needs {other}", "set both or none")
    for key in ("resolution", "minimum_image_size", "maximum_image_size", "target_downsample_size"):
        value = getattr(entry, key)
        if not value:
            continue
        if entry.resolution_type == "area" and value > 20:
            yield (key, value, "with resolution_type area it is in megapixels", "use pixel_area for a value in pixels")
        elif entry.resolution_type != "area" and value < 16:
            yield (key, value, "with this resolution_type it is in pixels", "use resolution_type area for megapixels")


def without_effect(entry: ImageDataset, own: Collection[str], options: Options) -> Iterator[str]:
    """``key: sentence`` about fields that do nothing beside the others; ``own`` are those that the entry gives itself."""
    if "instance_prompt" in own and not _wants_prompt(entry):
        yield (
            f"instance_prompt: not used, since caption_strategy is {entry.caption_strategy} "
            "(prepend_instance_prompt puts it before each caption)"
        )
    idle = [key for key in ("crop_aspect", "crop_style", "crop_aspect_buckets") if key in own]
    idle += [key for key in ("maximum_image_size", "target_downsample_size") if key in own and getattr(entry, key)]
    if idle and not entry.crop:
        yield f"{', '.join(idle)}: not used, since crop is false"
    table = entry.parquet
    if table and (table.width_column or table.height_column or table.aspect_ratio_column):
        sizes = [k for k in ("width_column", "height_column", "aspect_ratio_column") if getattr(table, k)]
        keys = ", ".join(f"parquet.{key}" for key in sizes)
        yield f"{keys}: not needed, sizes are read from the pictures' own headers"
    if table is not None and entry.caption_strategy != "parquet":
        yield f"parquet: not used, since caption_strategy is {entry.caption_strategy}"
    chance = entry.crop and "random" in (entry.crop_style, entry.crop_aspect) and entry.dataset_type == "image"
    if entry.vae_cache_clear_each_epoch and not chance:
        why = "held-out pictures stay as they are" if entry.dataset_type == "eval" else "no crop or aspect is random"
        yield f"vae_cache_clear_each_epoch: it changes nothing, since {why}"
    if entry.vae_cache_clear_each_epoch and chance and entry.cache_url:
        yield ("cache_dir_vae: with vae_cache_clear_each_epoch latents are soon outdated, so they are not sent there")
    if entry.disable_after_epoch_step and options.data.data_backend_sampling == "uniform":
        yield "disable_after_epoch_step: it acts only with data_backend_sampling auto-weighting"
    if entry.is_regularisation_data and options.model.model_type == "full":
        yield "is_regularisation_data: acts as ordinary data with model_type=full (no prior is preserved)"


def not_filled_in(asked: Sequence[str], own: Mapping[str, Collection[str]], file: str) -> Iterator[str]:
    """Sentences about options given for one run that entries do not take, since they have values of their own.

    Args:
        asked: Those options.
        own: Id of each dataset of pictures → fields that its entry gives itself.
        file: The dataloader file.
    """
    for key in asked:
        having = [name for name, fields in own.items() if key in fields]
        if having and len(having) == len(own):
            yield f"{key} has no effect: every dataset has its own in {file}, which counts"
        elif having:
            owners = ", ".join(f"[{name}]" for name in having)
            yield f"{key}: {owners} of {file} {'has its' if len(having) == 1 else 'have their'} own, which counts there"


def problems_together(built: Sequence[Entry], ids: Sequence[str], defaults: Sequence[str]) -> Iterator[Row]:
    """Rows about entries beside each other.

    Args:
        built: Those that are right by themselves.
        ids: Of all enabled entries.
        defaults: Ids of those with ``default``.
    """
    for name, count in Counter(ids).items():
        if count > 1:
            yield ("id", name, f"{count} entries have this id", "rename all but one")
    if len(defaults) > 1:
        yield ("default", list(defaults), "only one text_embeds entry may be the default", "")
    masks = {e.id: e for e in built if isinstance(e, MaskDataset)}
    for entry in built:
        if isinstance(entry, ImageDataset) and entry.conditioning_data and entry.conditioning_data not in masks:
            reason = "no enabled entry with dataset_type conditioning has this id"
            remedy = nearest(entry.conditioning_data, masks) if masks else "add one with conditioning_type mask"
            yield (f"[{entry.id}].conditioning_data", entry.conditioning_data, reason, remedy)
    trained = [e for e in built if isinstance(e, ImageDataset) and e.dataset_type == "image"]
    starting = [e for e in trained if e.probability > 0]
    if starting and not any(e.start_epoch <= 1 and e.start_step <= 1 for e in starting):
        yield ("start_epoch", None, "every dataset starts later than the run", "let one start at epoch 1 and step 0")


def nothing_to_train_on(built: Sequence[Entry]) -> Iterator[Row]:
    """A row if no entry has pictures for training; to be asked where nothing else is wrong."""
    if not any(isinstance(e, ImageDataset) and e.dataset_type == "image" for e in built):
        yield ("dataset_type", None, "no enabled entry has pictures to train on", "add or enable one")
