"""Read the dataloader file into Datasets: substitution, defaults from the options, and every problem at once."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from simpletuner.config.checking import Findings, build, nearest, other_values, sort_keys
from simpletuner.config.datasets import (
    FIELD_ALIASES,
    FIELD_CATALOGUE,
    FILLED_FROM_OPTIONS,
    MASK_SATISFIED,
    OTHER_FIELD_VALUES,
    TEXT_ONLY,
    Datasets,
    ImageDataset,
    MaskDataset,
    TextEmbedsDataset,
)
from simpletuner.config.noise_rules import density_of
from simpletuner.config.options import Options
from simpletuner.config.values import to_bool
from simpletuner.errors import Problem

TAR = re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz))$", re.IGNORECASE)
Entry = ImageDataset | MaskDataset | TextEmbedsDataset


def load_datasets(entries: Any, file: str, options: Options, findings: Findings) -> Datasets | None:
    """Check the parsed dataloader file.

    Args:
        entries: The parsed JSON, substitutions made.
        file: Its name, for messages.
        options: For defaults.
        findings: Problems and notices are added.

    Returns:
        The datasets, or None if there were problems.
    """
    before = len(findings.problems)
    if not isinstance(entries, list) or not entries:
        findings.problems.append(Problem(file, "", type(entries).__name__, "it must be a list of datasets, not empty"))
        return None
    built: list[Entry] = []
    defaults: list[str] = []
    ids: list[str] = []
    for number, raw in enumerate(entries):
        if not isinstance(raw, Mapping):
            findings.problems.append(Problem(file, f"entry {number + 1}", raw, "it must be an object"))
            continue
        entry = {FIELD_ALIASES.get(k, k): v for k, v in raw.items() if v is not None and v != ""}
        name = str(entry.get("id", f"entry {number + 1}"))
        disabled = to_bool(entry.pop("disabled", False))
        if disabled is True:
            continue
        if disabled is not False:
            problem = Problem(file, f"[{name}].disabled", disabled, "it must be true or false")
            findings.problems.append(problem)
        ids.append(name)
        made = _entry(entry, name, file, options, findings)
        if made is not None:
            built.append(made)
        if to_bool(entry.get("default", False)) is True:
            defaults.append(name)
    _check_together(built, ids, defaults, file, findings, before)
    if len(findings.problems) > before:
        return None
    texts = [e for e in built if isinstance(e, TextEmbedsDataset)]
    chosen = next((e for e in texts if e.default), texts[0] if texts else None)
    said = chosen or options.data
    images = [e for e in built if isinstance(e, ImageDataset)]
    return Datasets(
        train=tuple(e for e in images if e.dataset_type == "image"),
        eval=tuple(e for e in images if e.dataset_type == "eval"),
        text_cache_dir=chosen.cache_dir if chosen else _cache(options) / "text",
        masks={e.id: e for e in built if isinstance(e, MaskDataset)},
        text_embeds=chosen,
        text_caching="never" if said.text_cache_disable else "ondemand" if said.text_cache_ondemand else "ahead",
    )


def _cache(options: Options) -> Path:
    return options.data.cache_dir or options.checkpoints.output_dir / "cache"


def _entry(entry: dict[str, Any], name: str, file: str, options: Options, findings: Findings) -> Entry | None:
    """One entry, checked."""
    kinds: dict[str, type[Entry]] = {"text_embeds": TextEmbedsDataset, "conditioning": MaskDataset}
    model = kinds.get(str(entry.get("dataset_type")), ImageDataset)
    is_text = model is TextEmbedsDataset
    where = dict.fromkeys([*entry, *model.model_fields, ""], file)
    prefix = f"[{name}]."
    named = set(entry)
    other_values(entry, where, OTHER_FIELD_VALUES, findings, prefix)
    catalogue = FIELD_CATALOGUE
    if model is ImageDataset:
        catalogue = {**FIELD_CATALOGUE, **TEXT_ONLY}
    if model is MaskDataset:
        theirs = set(ImageDataset.model_fields) - set(MaskDataset.model_fields)
        catalogue = {**FIELD_CATALOGUE, **dict.fromkeys(theirs, MASK_SATISFIED)}
    supported = set(model.model_fields) - {"source_url", "cache_url"}  # derived here, never written by a person
    values = sort_keys(entry, where, supported, catalogue, findings, prefix)
    if model is MaskDataset:
        if "conditioning_type" in named:  # refused just now: do not call it missing as well
            values.setdefault("conditioning_type", "mask")
        made = build(model, values, where, findings, prefix)
        if isinstance(made, MaskDataset) and not made.instance_data_dir.expanduser().is_dir():
            reason = "there is no such folder"
            key = f"{prefix}instance_data_dir"
            findings.problems.append(Problem(file, key, str(made.instance_data_dir), reason, "make it or correct it"))
        return made if isinstance(made, MaskDataset) else None
    if is_text:
        here = options.data.cache_dir_text or _cache(options) / "text"
        values.setdefault("cache_dir", "text" if values.get("type") == "aws" else here)
        if values.get("type") == "aws":
            _text_bucket(values, name, file, findings)
        _cache_elsewhere(values, "cache_dir", options)
        for key in ("text_cache_ondemand", "text_cache_disable"):
            values.setdefault(key, getattr(options.data, key))
        if to_bool(values["text_cache_ondemand"]) and to_bool(values["text_cache_disable"]):
            reason, key = "text_cache_disable keeps nothing to fill on demand", f"[{name}].text_cache_ondemand"
            findings.problems.append(Problem(file, key, True, reason, "set one of the two"))
        return build(model, values, where, findings, prefix)  # type: ignore[return-value]
    for key in FILLED_FROM_OPTIONS:
        value = getattr(options.data, key)
        if value is not None:
            values.setdefault(key, value)
    values.setdefault("cache_dir_vae", (options.data.cache_dir_vae or _cache(options) / "vae") / name)
    _cache_elsewhere(values, "cache_dir_vae", options)
    _remote(values, name, file, options, findings)
    made = build(model, values, where, findings, prefix)
    if isinstance(made, ImageDataset):
        _check_image(made, entry, file, options, findings)
        return made
    return None


def _cache_elsewhere(values: dict[str, Any], key: str, options: Options) -> None:
    """A cache behind a URL: ``cache_url`` says where, and the folder becomes its copy here."""
    url = str(values[key])
    if "://" in url:
        values["cache_url"] = url
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", url.partition("://")[2]).strip("-.")[-60:]
        digest = hashlib.sha256(url.encode()).hexdigest()[:8]
        values[key] = str(_cache(options) / "copies" / f"{name}-{digest}")


def _text_bucket(values: dict[str, Any], name: str, file: str, findings: Findings) -> None:
    """Text embeds with type aws: cache_dir is a prefix in the bucket."""
    bucket, place = values.get("aws_bucket_name"), str(values["cache_dir"])
    if not bucket:
        key = f"[{name}].aws_bucket_name"
        findings.problems.append(Problem(file, key, bucket, "type aws needs it", "name the bucket"))
    if "://" not in place:
        parts = [str(values.get("aws_data_prefix") or ""), place]
        values["cache_dir"] = "/".join(["s3:/", str(bucket), *(p.strip("/") for p in parts if p.strip("/"))])


def _remote(values: dict[str, Any], name: str, file: str, options: Options, findings: Findings) -> None:
    """Pictures that are elsewhere: ``source_url`` says where, and instance_data_dir becomes their mirror here."""
    place = str(values.get("instance_data_dir", ""))
    bucket = values.get("aws_bucket_name")
    if values.get("type") in ("huggingface", "csv", "webdataset"):
        _listed(values, name, file, findings)
    if values.get("type") == "aws":
        if not bucket:
            key = f"[{name}].aws_bucket_name"
            findings.problems.append(Problem(file, key, bucket, "type aws needs it", "name the bucket"))
        parts = [str(values.get("aws_data_prefix") or ""), "" if "://" in place else place]
        values["source_url"] = "/".join(["s3:/", str(bucket), *(p.strip("/") for p in parts if p.strip("/"))])
    elif values.get("type") in ("huggingface", "csv"):
        values["source_url"] = f"{values['type']}://{values.get('dataset_name') or values.get('csv_file')}"
    elif "://" in place or values.get("type") == "webdataset":
        values["source_url"] = place
    else:
        unused = [key for key in values if key.startswith("aws_")]
        if unused and not str(values.get("cache_url", "")).startswith("s3://"):
            findings.notices.append(f"[{name}].{unused[0]}: it acts only with type aws")
        return
    values["instance_data_dir"] = str(values.get("csv_cache_dir") or _cache(options) / "files" / name)


def _listed(values: dict[str, Any], name: str, file: str, findings: Findings) -> None:
    """Datasets whose pictures are listed or packed somewhere."""
    kind = str(values["type"])
    key, what = {
        "csv": ("csv_file", "name the file"),
        "huggingface": ("dataset_name", "name the dataset"),
        "webdataset": ("instance_data_dir", "name a tar file, a folder of them, or a pattern such as a-{000..009}.tar"),
    }[kind]
    given = values.get(key)
    if not given:
        findings.problems.append(Problem(file, f"[{name}].{key}", None, f"type {kind} needs it", what))
    elif kind == "csv" and not Path(str(given)).expanduser().is_file():
        findings.problems.append(Problem(file, f"[{name}].{key}", given, "there is no such file", "correct the path"))
    strategy = values.get("caption_strategy")
    fitting = [kind, *(["filename", "null"] if kind == "webdataset" else []), "instanceprompt"]
    if strategy not in fitting:
        reason = "a dataset of this type has no caption files"
        remedy = f"use {', '.join(fitting[:-1])} or instanceprompt"
        findings.problems.append(Problem(file, f"[{name}].caption_strategy", strategy, reason, remedy))


def _check_image(entry: ImageDataset, own: Mapping[str, Any], file: str, options: Options, findings: Findings) -> None:
    """Rules between the fields of one entry; ``own`` are those that it gives itself."""
    prefix = f"[{entry.id}]."

    def problem(key: str, value: object, reason: str, remedy: str) -> None:
        findings.problems.append(Problem(file, prefix + key, value, reason, remedy))

    if not entry.source_url and not entry.instance_data_dir.expanduser().is_dir():
        tar = TAR.search(str(entry.instance_data_dir))
        reason = "type local reads a folder, and this names tar files" if tar else "there is no such folder"
        remedy = "set type and caption_strategy to webdataset" if tar else "make it or correct it"
        problem("instance_data_dir", str(entry.instance_data_dir), reason, remedy)
    if entry.id in (".", "..") or "/" in entry.id or "\\" in entry.id:
        problem("id", entry.id, "it names folders and files, so it must not be a path", "use letters, digits, - and _")
    needs_prompt = entry.prepend_instance_prompt or entry.only_instance_prompt
    if (entry.caption_strategy == "instanceprompt" or needs_prompt) and not entry.instance_prompt:
        problem("instance_prompt", entry.instance_prompt, "it is needed here and empty", "name your subject")
    if "instance_prompt" in own and not (entry.caption_strategy == "instanceprompt" or needs_prompt):
        findings.notices.append(
            f"{prefix}instance_prompt: not used, since caption_strategy is {entry.caption_strategy} "
            "(prepend_instance_prompt puts it before each caption)"
        )
    idle = [key for key in ("crop_aspect", "crop_style", "crop_aspect_buckets") if key in own]
    if idle and not entry.crop:
        findings.notices.append(f"{prefix}{', '.join(idle)}: not used, since crop is false")
    density = density_of(options.flow)
    if entry.timestep_sampling_offset and density != "logit_normal":
        value, reason = entry.timestep_sampling_offset, f"the {density} density has no normal draw to move"
        problem("timestep_sampling_offset", value, reason, "remove it, or keep the logit-normal density")
    _check_apart(entry, options, problem)
    if entry.caption_strategy == "parquet" and entry.parquet is None:
        problem("parquet", None, "caption_strategy parquet needs it", 'for example {"path": "captions.parquet"}')
    table = entry.parquet
    if table and (table.width_column or table.height_column or table.aspect_ratio_column):
        sizes = [k for k in ("width_column", "height_column", "aspect_ratio_column") if getattr(table, k)]
        keys = ", ".join(f"parquet.{key}" for key in sizes)
        findings.notices.append(f"{prefix}{keys}: not needed, sizes are read from the pictures' own headers")
    if entry.parquet is not None and entry.caption_strategy != "parquet":
        findings.notices.append(f"{prefix}parquet: not used, since caption_strategy is {entry.caption_strategy}")
    if entry.crop and entry.crop_aspect in ("closest", "random") and not entry.crop_aspect_buckets:
        problem(
            "crop_aspect_buckets",
            None,
            f"crop_aspect {entry.crop_aspect} needs a list",
            "for example [1.0, 0.75, 1.33]",
        )
    if entry.maximum_image_size and not entry.target_downsample_size:
        problem("maximum_image_size", entry.maximum_image_size, "it needs target_downsample_size", "set both or none")
    if entry.target_downsample_size and not entry.maximum_image_size:
        value = entry.target_downsample_size
        problem("target_downsample_size", value, "it needs maximum_image_size", "set both or none")
    for key in ("resolution", "minimum_image_size", "maximum_image_size", "target_downsample_size"):
        value = getattr(entry, key)
        if not value:
            continue
        if entry.resolution_type == "area" and value > 20:
            problem(key, value, "with resolution_type area it is in megapixels", "use pixel_area for a value in pixels")
        elif entry.resolution_type != "area" and value < 16:
            problem(key, value, "with this resolution_type it is in pixels", "use resolution_type area for megapixels")
    if entry.conditioning_data and entry.type in ("csv", "webdataset"):
        reason = f"masks are found by file name, and pictures of type {entry.type} get names of their own here"
        problem("conditioning_data", entry.conditioning_data, reason, "put pictures and masks into folders")
    chance = entry.crop and "random" in (entry.crop_style, entry.crop_aspect) and entry.dataset_type == "image"
    if entry.vae_cache_clear_each_epoch and not chance:
        why = "held-out pictures stay as they are" if entry.dataset_type == "eval" else "no crop or aspect is random"
        findings.notices.append(f"{prefix}vae_cache_clear_each_epoch: it changes nothing, since {why}")
    if entry.vae_cache_clear_each_epoch and chance and entry.cache_url:
        findings.notices.append(
            f"{prefix}cache_dir_vae: with vae_cache_clear_each_epoch latents are soon outdated, so they are not sent there"
        )
    if entry.disable_after_epoch_step and options.data.data_backend_sampling == "uniform":
        findings.notices.append(
            f"{prefix}disable_after_epoch_step: it acts only with data_backend_sampling auto-weighting"
        )
    if entry.is_regularisation_data and options.model.model_type == "full":
        findings.notices.append(
            f"{prefix}is_regularisation_data: acts as ordinary data with model_type=full (no prior is preserved)"
        )


def _check_apart(entry: ImageDataset, options: Options, problem: Callable[[str, object, str, str], None]) -> None:
    """Nothing is written into picture folders: neither results nor caches may lie inside one."""
    pictures = entry.instance_data_dir.expanduser().resolve()
    places = {"output_dir": options.checkpoints.output_dir, "cache_dir_vae": entry.cache_dir_vae}
    for key, place in places.items():
        if place.expanduser().resolve().is_relative_to(pictures):
            reason = f"{key} {str(place)!r} lies inside it: what is written there would be trained on"
            problem("instance_data_dir", str(entry.instance_data_dir), reason, f"choose another {key}")


def _check_together(
    built: list[Entry],
    ids: list[str],
    defaults: list[str],
    file: str,
    findings: Findings,
    before: int,
) -> None:
    """Rules between entries."""
    for name, count in Counter(ids).items():
        if count > 1:
            findings.problems.append(Problem(file, "id", name, f"{count} entries have this id", "rename all but one"))
    if len(defaults) > 1:
        findings.problems.append(Problem(file, "default", defaults, "only one text_embeds entry may be the default"))
    masks = {e.id: e for e in built if isinstance(e, MaskDataset)}
    for entry in built:
        if isinstance(entry, ImageDataset) and entry.conditioning_data and entry.conditioning_data not in masks:
            key, value = f"[{entry.id}].conditioning_data", entry.conditioning_data
            reason = "no enabled entry with dataset_type conditioning has this id"
            remedy = nearest(value, masks) if masks else "add one with conditioning_type mask"
            findings.problems.append(Problem(file, key, value, reason, remedy))
    starting = [e for e in built if isinstance(e, ImageDataset) and e.dataset_type == "image" and e.probability > 0]
    if starting and not any(e.start_epoch <= 1 and e.start_step <= 1 for e in starting):
        reason = "every dataset starts later than the run"
        findings.problems.append(Problem(file, "start_epoch", None, reason, "let one start at epoch 1 and step 0"))
    trained = [e for e in built if isinstance(e, ImageDataset) and e.dataset_type == "image"]
    if not trained and len(findings.problems) == before:
        findings.problems.append(
            Problem(file, "dataset_type", None, "no enabled entry has pictures to train on", "add or enable one")
        )
