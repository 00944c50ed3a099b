"""The dataloader file (multidatabackend.json): entries, their fields, and what each field's class is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr

from simpletuner.config.catalogue import OFF, Known, defaults_of
from simpletuner.config.section import Positive, Section
from simpletuner.config.values import parse_aspects, parse_filter

Nonnegative = Annotated[float, Field(ge=0.0)]


def _only_one(value: Any) -> Any:
    """A list of one id is that id."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def _spelling(value: Any) -> Any:
    return "center" if value == "centre" else value


class CaptionShuffle(Section):
    """``caption_shuffle``: alternative captions with their parts in another order."""

    enable: bool = False
    count: Positive = 1
    seed: int = 0
    split_on: Literal["comma", "space", "period"] = "comma"
    position_start: Annotated[int, Field(ge=0)] = 0
    include_original: bool = True


class CaptionTableOptions(Section):
    """``parquet``: a table of captions (.parquet, .jsonl, .json or .csv)."""

    path: Path
    filename_column: str = "filename"
    caption_column: str = "caption"
    fallback_caption_column: str | None = None
    identifier_includes_extension: bool = False
    width_column: str | None = None
    height_column: str | None = None
    aspect_ratio_column: str | None = None


class OnS3(Section):
    """Keys of entries whose files or caches may lie in a bucket."""

    aws_bucket_name: str | None = None
    aws_data_prefix: str | None = None
    aws_region_name: str | None = None
    aws_endpoint_url: str | None = None
    aws_access_key_id: SecretStr | None = None
    aws_secret_access_key: SecretStr | None = None
    cache_url: str = ""


class ImageDataset(OnS3):
    """Pictures to train on (dataset_type image) or to measure held-out loss on (eval)."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["local", "aws", "huggingface", "csv", "webdataset"] = "local"
    dataset_type: Literal["image", "eval"] = "image"
    instance_data_dir: Path
    source_url: str = ""
    dataset_name: str | None = None
    dataset_config: str | None = None
    split: str = "train"
    revision: str | None = None
    image_column: str = "image"
    caption_column: str = "caption"
    fallback_caption_column: str | None = None
    csv_file: Path | None = None
    csv_caption_column: str = "caption"
    csv_cache_dir: Path | None = None
    cache_dir_vae: Path
    resolution: Annotated[float, Field(gt=0.0)]
    resolution_type: Literal["pixel", "area", "pixel_area"]
    crop: bool = False
    crop_aspect: Literal["square", "preserve", "closest", "random"] = "square"
    crop_aspect_buckets: Annotated[tuple[tuple[float, float], ...] | None, BeforeValidator(parse_aspects)] = None
    crop_style: Annotated[Literal["center", "corner", "random"], BeforeValidator(_spelling)] = "center"
    minimum_image_size: Nonnegative | None = None
    maximum_image_size: Nonnegative | None = None
    target_downsample_size: Nonnegative | None = None
    minimum_aspect_ratio: Nonnegative | None = None
    maximum_aspect_ratio: Nonnegative | None = None
    max_upscale_threshold: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    max_num_samples: Positive | None = None
    caption_strategy: Literal[
        "filename", "textfile", "instanceprompt", "parquet", "huggingface", "csv", "webdataset", "null"
    ]
    instance_prompt: str | tuple[str, ...] | None = None
    prepend_instance_prompt: bool = False
    only_instance_prompt: bool = False
    parquet: CaptionTableOptions | None = None
    caption_filter_list: Annotated[tuple[str, ...], BeforeValidator(parse_filter)] = ()
    caption_shuffle: CaptionShuffle | None = None
    disable_multiline_split: bool = False
    repeats: Annotated[int, Field(ge=0)] = 0
    probability: Nonnegative = 1.0
    train_batch_size: Positive | None = None
    start_epoch: Annotated[int, Field(ge=0)] = 1
    start_step: Annotated[int, Field(ge=0)] = 0
    end_epoch: Annotated[int, Field(ge=0)] | None = None
    end_step: Annotated[int, Field(ge=0)] | None = None
    is_regularisation_data: bool = False
    conditioning_data: Annotated[str | None, BeforeValidator(_only_one)] = None
    timestep_sampling_offset: float = 0.0
    vae_batch_size: Positive = 4
    vae_cache_ondemand: bool = False
    vae_cache_disable: bool = False
    vae_cache_clear_each_epoch: bool = False
    disable_after_epoch_step: Annotated[int, Field(ge=0)] | None = None


class MaskDataset(Section):
    """Masks for a masked loss (dataset_type conditioning); sizes and crops are those of the pictures they belong to."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["local"] = "local"
    dataset_type: Literal["conditioning"]
    conditioning_type: Literal["mask", "segmentation"]
    instance_data_dir: Path


class TextEmbedsDataset(OnS3):
    """Where text embeds are kept."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["local", "aws"] = "local"
    dataset_type: Literal["text_embeds"]
    default: bool = False
    cache_dir: Path
    text_cache_ondemand: bool = False
    text_cache_disable: bool = False


@dataclass(frozen=True, slots=True)
class Datasets:
    """The checked dataloader file.

    Attributes:
        train: Training datasets.
        eval: Held-out datasets.
        text_cache_dir: Where text embeds are kept here.
        masks: Mask datasets by id.
        text_embeds: The entry that says so, if there is one.
        text_caching: When captions are encoded; see ``DatasetSource.caching``.
    """

    train: tuple[ImageDataset, ...]
    eval: tuple[ImageDataset, ...]
    text_cache_dir: Path
    masks: Mapping[str, MaskDataset] = field(default_factory=dict)
    text_embeds: TextEmbedsDataset | None = None
    text_caching: Literal["ahead", "ondemand", "never"] = "ahead"


FIELD_ALIASES: Mapping[str, str] = {
    "is_regularization_data": "is_regularisation_data",
    "disable": "disabled",
}

# Global options that fill in what an entry leaves out.
FILLED_FROM_OPTIONS = (
    "resolution",
    "resolution_type",
    "minimum_image_size",
    "maximum_image_size",
    "target_downsample_size",
    "caption_strategy",
    "instance_prompt",
    "prepend_instance_prompt",
    "only_instance_prompt",
    "vae_batch_size",
    "max_upscale_threshold",
    "vae_cache_ondemand",
    "vae_cache_disable",
)


def _known(status: str, text: str, keys: str, off: tuple[Any, ...] = ()) -> dict[str, Known]:
    return {key: Known(status, text, (*OFF, *off, *defaults_of(key))) for key in keys.split()}


FIELD_CATALOGUE: Mapping[str, Known] = {
    **_known("satisfied", "discovery is how pictures are found", "metadata_backend", ("discovery", "json", "parquet", "huggingface", "csv", "webdataset")),
    **_known(
        "satisfied",
        "caching needs no tuning",
        "write_batch_size read_batch_size image_processing_batch_size text_encoder_batch_size hash_filenames "
        "preserve_data_backend_cache vae_cache_scan_behaviour text_embeds image_embeds scan_for_errors ignore_epochs "
        "aspect_bucket_worker_count metadata_update_interval compress_disk_cache",
    ),
    **_known("satisfied", "sizes are read from the pictures' own headers", "width_column height_column"),
    **_known("satisfied", "the dataset is kept on disk once, and read from there", "streaming"),
    **_known("satisfied", "looking at pictures reads headers only, and caches know what they hold", "skip_file_discovery"),
    **_known("refused", "its keys (dataset_name, split, image_column …) stand in the entry itself", "huggingface"),
    **_known("refused", "rows are not chosen here: filter the dataset once with the datasets library, and name its folder",
             "quality_column filter"),
    **_known("refused", "pictures are not cut out of composites: save each as a picture of its own",
             "composite_image_config"),
    **_known("refused", "made conditioning is not planned; mask files in a dataset of their own work (conditioning_data)",
             "conditioning source_dataset_id conditioning_image_embeds slider_strength"),
    **_known("refused", "only a dataset with dataset_type conditioning has one", "conditioning_type"),
    **_known("refused", "pictures of the user are never deleted", "delete_problematic_images delete_unwanted_images"),
    **_known("refused", "unknown spelling; the key is vae_cache_disable", "disable_vae_cache"),
}  # fmt: skip

OTHER_FIELD_VALUES: Mapping[str, Mapping[str, str]] = {
    "type": {
        "webshart": "its shards are tar files: use type webdataset with instance_data_dir naming them",
        "memory": "pictures are read from files: local folders, aws, huggingface, csv, webdataset and URLs work",
    },
    "dataset_type": {
        "image_embeds": "not needed: latents are kept in cache_dir_vae; remove this entry",
        "video": "Sana makes pictures, not video",
        "audio": "Sana makes pictures, not sound",
        "caption": "captions without pictures train nothing here; remove this entry",
        "distillation_cache": "not yet: distillation is not planned for Sana",
    },
    "crop_style": {"face": "finding faces needs a detector that this program does not carry; use center"},
    "conditioning_type": {
        name: "Sana is trained here without ControlNet or reference pictures; mask and segmentation work"
        for name in ("controlnet", "reference_strict", "reference_loose")
    },
    "caption_strategy": {"webshart": "captions of tar files come with type webdataset and caption_strategy webdataset"},
    "metadata_backend": {"webshart": "no metadata is kept; use type webdataset, and leave this out"},
}

# Keys that an entry of pictures must not have.
TEXT_ONLY: Mapping[str, Known] = _known(
    "refused",
    "it belongs to an entry with dataset_type text_embeds, or to the options of the run",
    "text_cache_ondemand text_cache_disable",
)

# Keys that a mask dataset takes over from the pictures it belongs to.
MASK_SATISFIED = Known(
    "satisfied", "masks are resized and cropped exactly as the pictures they belong to", (*OFF, "local", "conditioning")
)
