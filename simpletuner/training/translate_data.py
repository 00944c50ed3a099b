"""Dataloader entries become plain values: the data half of ``translate``. Pure functions; nothing is read or printed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from simpletuner.config.datasets import Datasets, ImageDataset, TextEmbedsDataset
from simpletuner.config.read import RunConfig
from simpletuner.data.captions import CaptionRules, Shuffle
from simpletuner.data.hub_dataset import HubDataset
from simpletuner.data.masks import MaskSource
from simpletuner.data.mirror import RemoteSource
from simpletuner.data.placement import PlacementRules
from simpletuner.data.sampler import Drawing, Turn
from simpletuner.data.tables import TableSource
from simpletuner.data.tar_dataset import TarSource
from simpletuner.data.url_list import UrlList
from simpletuner.training.prepare import DatasetSource


def dataset_source(config: RunConfig, entry: ImageDataset, alignment: int, stride: int = 32) -> DatasetSource:
    """One dataloader entry in plain values."""
    prompts, strategy = entry.instance_prompt, entry.caption_strategy
    tabled = entry.type == "webdataset" and strategy == "filename"
    if strategy == "huggingface" or strategy == "csv" or strategy == "webdataset" or tabled:
        strategy = "parquet"  # room 1 writes a table for them
    return DatasetSource(
        id=entry.id,
        folder=Path(entry.instance_data_dir).expanduser(),
        captions=CaptionRules(
            strategy=strategy,
            instance_prompts=(prompts,) if isinstance(prompts, str) else tuple(prompts or ()),
            prepend_instance_prompt=entry.prepend_instance_prompt,
            only_instance_prompt=entry.only_instance_prompt,
            whole_file=entry.disable_multiline_split,
            remove=entry.caption_filter_list,
            shuffle=_shuffle(entry),
        ),
        placement=PlacementRules(
            resolution=entry.resolution,
            resolution_type=entry.resolution_type,
            alignment=alignment,
            crop=entry.crop,
            crop_aspect=entry.crop_aspect,
            aspect_buckets=tuple(aspect for aspect, _ in entry.crop_aspect_buckets or ()),
            aspect_weights=tuple(weight for _, weight in entry.crop_aspect_buckets or ()),
            max_upscale_threshold=entry.max_upscale_threshold,
            minimum_aspect_ratio=entry.minimum_aspect_ratio,
            maximum_aspect_ratio=entry.maximum_aspect_ratio,
            crop_style=entry.crop_style,
            minimum_image_size=entry.minimum_image_size,
            maximum_image_size=entry.maximum_image_size,
            target_downsample_size=entry.target_downsample_size,
        ),
        repeats=entry.repeats,
        max_samples=entry.max_num_samples,
        caching=_caching(entry),
        redraw=redraws(entry),
        mask=_mask_source(config, entry),
        table=_table_source(entry),
        remote=_remote_source(entry),
        hub=_hub_dataset(entry),
        listed=_url_list(entry),
        tars=_tar_source(entry),
        stride=stride,
        latent_remote=None if redraws(entry) else _cache_remote(entry),
        latent_dir=Path(entry.cache_dir_vae).expanduser(),
        encode_batch=entry.vae_batch_size,
        timestep_offset=entry.timestep_sampling_offset,
    )


def _caching(entry: ImageDataset) -> Literal["ahead", "ondemand", "never"]:
    if entry.vae_cache_disable:
        return "never"
    return "ondemand" if entry.vae_cache_ondemand or redraws(entry) else "ahead"


def redraws(entry: ImageDataset) -> bool:
    """Whether ``vae_cache_clear_each_epoch`` changes anything: there is chance in where its pictures go."""
    chance = entry.crop and "random" in (entry.crop_style, entry.crop_aspect)
    return entry.vae_cache_clear_each_epoch and chance and entry.dataset_type == "image"


def _mask_source(config: RunConfig, entry: ImageDataset) -> MaskSource | None:
    """The masks of a training dataset; the held-out loss is never masked."""
    if not entry.conditioning_data or entry.dataset_type == "eval":
        return None
    found = config.datasets.masks[entry.conditioning_data]
    always = found.conditioning_type == "mask"
    share = 1.0 if always else config.options.data.masked_loss_probability
    return MaskSource(found.id, found.instance_data_dir.expanduser(), found.conditioning_type, share)


def _remote_source(entry: ImageDataset) -> RemoteSource | None:
    """Where a dataset's files come from, if not from this machine. Without keys the usual AWS sources of them count."""
    if not entry.source_url or entry.type in ("huggingface", "csv", "webdataset"):
        return None
    return RemoteSource(entry.source_url, _access(entry))


def _access(entry: ImageDataset | TextEmbedsDataset) -> dict[str, Any]:
    """What fsspec's S3 file system is told of a dataset's keys, place and endpoint."""
    client = {"endpoint_url": entry.aws_endpoint_url, "region_name": entry.aws_region_name}
    secrets = {"key": entry.aws_access_key_id, "secret": entry.aws_secret_access_key}
    given: dict[str, Any] = {name: secret.get_secret_value() for name, secret in secrets.items() if secret}
    kept = {name: value for name, value in client.items() if value}
    return {**given, **({"client_kwargs": kept} if kept else {})}


def _cache_remote(entry: ImageDataset | TextEmbedsDataset) -> RemoteSource | None:
    """The URL of a cache that does not only lie here."""
    if not entry.cache_url:
        return None
    return RemoteSource(entry.cache_url, _access(entry) if entry.cache_url.startswith("s3://") else {})


def text_remote(datasets: Datasets) -> RemoteSource | None:
    """The URL of the cache of text embeds, or None."""
    return _cache_remote(datasets.text_embeds) if datasets.text_embeds else None


def _tar_source(entry: ImageDataset) -> TarSource | None:
    """The tar files, if the pictures are in some."""
    if entry.type != "webdataset":
        return None
    return TarSource(
        place=entry.source_url,
        captions={"webdataset": "members", "filename": "names"}.get(entry.caption_strategy),
        caption_column=entry.caption_column if "caption_column" in entry.model_fields_set else None,
        options=_access(entry) if entry.source_url.startswith("s3://") else {},
    )


def _url_list(entry: ImageDataset) -> UrlList | None:
    """The CSV file of addresses, if the pictures are listed in one."""
    if entry.type != "csv" or not entry.csv_file:
        return None
    captions = entry.csv_caption_column if entry.caption_strategy == "csv" else None
    return UrlList(entry.csv_file.expanduser(), captions)


def _hub_dataset(entry: ImageDataset) -> HubDataset | None:
    """The Hugging Face dataset, if the pictures are in one."""
    if entry.type != "huggingface" or not entry.dataset_name:
        return None
    return HubDataset(
        name=entry.dataset_name,
        config=entry.dataset_config,
        split=entry.split,
        revision=entry.revision,
        image_column=entry.image_column,
        caption_column=entry.caption_column if entry.caption_strategy == "huggingface" else None,
        fallback_caption_column=entry.fallback_caption_column,
    )


def _table_source(entry: ImageDataset) -> TableSource | None:
    """The table of captions, where captions come from one. Sizes are read from the pictures themselves."""
    tars = _tar_source(entry)
    if tars:
        return tars.table(Path(entry.instance_data_dir).expanduser())
    listed = _hub_dataset(entry) or _url_list(entry)
    if listed and entry.caption_strategy == entry.type:
        return listed.table(Path(entry.instance_data_dir).expanduser())
    asked = entry.parquet
    if asked is None or entry.caption_strategy != "parquet":
        return None
    return TableSource(
        path=asked.path.expanduser(),
        filename_column=asked.filename_column,
        caption_column=asked.caption_column,
        fallback_caption_column=asked.fallback_caption_column,
        includes_extension=asked.identifier_includes_extension,
    )


def _shuffle(entry: ImageDataset) -> Shuffle | None:
    """``caption_shuffle``, if it is on."""
    asked = entry.caption_shuffle
    if asked is None or not asked.enable:
        return None
    return Shuffle(asked.count, asked.seed, asked.split_on, asked.position_start, asked.include_original)


def drawing(config: RunConfig) -> Drawing:
    """How the batches of all datasets are mixed."""
    settings = config.options.training
    auto = config.options.data.data_backend_sampling == "auto-weighting"
    return Drawing(
        batch_size=settings.train_batch_size,
        accumulation=settings.gradient_accumulation_steps,
        world_size=config.options.processes.num_processes,
        mixing=config.options.data.data_backend_sampling,
        turns={
            e.id: Turn(
                probability=e.probability,
                start_epoch=e.start_epoch,
                end_epoch=e.end_epoch,
                start_step=_from_zero(e.start_step),
                end_step=e.end_step,
                batch_size=e.train_batch_size,
                fade_step=e.disable_after_epoch_step if auto else None,
            )
            for e in config.datasets.train
        },
    )


def turns_together(config: RunConfig) -> dict[str, dict[str, Any]]:
    """When and how often each dataset comes, by id; batch sizes are those of all processes together."""
    world = config.options.processes.num_processes
    turns = {name: asdict(turn) for name, turn in drawing(config).turns.items()}
    return {
        name: turn | ({"batch_size": turn["batch_size"] * world} if turn["batch_size"] else {})
        for name, turn in turns.items()
    }


def _from_zero(start_step: int) -> int:
    """Steps done before a dataset may come: 0 and 1 both mean from the first step on."""
    return 0 if start_step <= 1 else start_step


def regularisation(config: RunConfig) -> list[str]:
    """Ids of the datasets on which an adapter keeps the base model's prediction; none where all weights are trained."""
    if config.options.model.model_type == "full":
        return []
    return [entry.id for entry in config.datasets.train if entry.is_regularisation_data]
