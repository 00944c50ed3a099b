"""Read the dataloader file into Datasets: substitution, defaults from the options, and every problem at once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from simpletuner.config import dataset_rules
from simpletuner.config.checking import Findings, build, other_values, sort_keys
from simpletuner.config.dataset_rules import Entry
from simpletuner.config.datasets import (
    FIELD_ALIASES,
    FIELD_CATALOGUE,
    MASK_SATISFIED,
    OTHER_FIELD_VALUES,
    TEXT_ONLY,
    Datasets,
    ImageDataset,
    MaskDataset,
    TextEmbedsDataset,
)
from simpletuner.config.options import Options
from simpletuner.config.values import to_bool
from simpletuner.errors import Problem
from simpletuner.shared_keys import FILLED_FROM_OPTIONS


def load_datasets(
    entries: Any, file: str, options: Options, findings: Findings, wished: Collection[str] = ()
) -> Datasets | None:
    """Check the parsed dataloader file.

    Args:
        entries: The parsed JSON, substitutions made.
        file: Its name, for messages.
        options: For defaults.
        findings: Problems and notices are added.
        wished: Options that were given for this run alone, on the command line or in the environment.

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
    own: dict[str, set[str]] = {}
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
        given = set(entry)
        made = _entry(entry, name, file, options, findings)
        if made is not None:
            built.append(made)
        if isinstance(made, ImageDataset):
            own[name] = given
        if to_bool(entry.get("default", False)) is True:
            defaults.append(name)
    findings.problems += [Problem(file, *row) for row in dataset_rules.problems_together(built, ids, defaults)]
    if len(findings.problems) == before:
        findings.problems += [Problem(file, *row) for row in dataset_rules.nothing_to_train_on(built)]
    if len(findings.problems) > before:
        return None
    asked = [key for key in (*FILLED_FROM_OPTIONS, "cache_dir_vae") if key in wished]
    findings.notices += dataset_rules.not_filled_in(asked, own, file)
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
        for key, value, reason, remedy in dataset_rules.problems(made, options):
            findings.problems.append(Problem(file, prefix + key, value, reason, remedy))
        findings.notices += [prefix + line for line in dataset_rules.without_effect(made, entry, options)]
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
