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

    enable: bool = Field(False, description="Make captions with their parts in another order.")
    count: Positive = Field(1, description="How many orders of each caption.")
    seed: int = Field(0, description="Which orders.")
    split_on: Literal["comma", "space", "period"] = Field("comma", description="What parts the caption.")
    position_start: Annotated[int, Field(ge=0)] = Field(
        0, description="So many parts at the front stay where they are."
    )
    include_original: bool = Field(True, description="The caption as it is counts as well.")


class CaptionTableOptions(Section):
    """``parquet``: a table of captions (.parquet, .jsonl, .json or .csv)."""

    path: Path = Field(description="The table; its ending says what it is.")
    filename_column: str = Field("filename", description="Column of file names: paths inside instance_data_dir.")
    caption_column: str = Field("caption", description="Column of captions; a list holds alternatives.")
    fallback_caption_column: str | None = Field(None, description="Column for rows without a caption.")
    identifier_includes_extension: bool = Field(False, description="File names in the table have their ending.")
    width_column: str | None = Field(None, description="Not needed: sizes are read from the pictures' own headers.")
    height_column: str | None = Field(None, description="Not needed, likewise.")
    aspect_ratio_column: str | None = Field(None, description="Not needed, likewise.")


class OnS3(Section):
    """Keys of entries whose files or caches may lie in a bucket."""

    aws_bucket_name: str | None = Field(None, description="Bucket of type aws.")
    aws_data_prefix: str | None = Field(None, description="Where in the bucket.")
    aws_region_name: str | None = Field(None, description="Its region.")
    aws_endpoint_url: str | None = Field(None, description="Another store that speaks S3.")
    aws_access_key_id: SecretStr | None = Field(
        None, description="Key; better as {env:NAME}. Without one the usual AWS sources count."
    )
    aws_secret_access_key: SecretStr | None = Field(None, description="Its secret.")
    cache_url: str = ""


class ImageDataset(OnS3):
    """Pictures to train on (dataset_type image) or to measure held-out loss on (eval)."""

    id: Annotated[str, Field(min_length=1)] = Field(description="Its name in messages and caches.")
    type: Literal["local", "aws", "huggingface", "csv", "webdataset"] = Field(
        "local",
        description="Where the pictures are: a folder or URL, S3, a Hugging Face dataset, a CSV of addresses, tar files.",
    )
    dataset_type: Literal["image", "eval"] = Field(
        "image", description="image is trained on; eval is held out and only measured."
    )
    instance_data_dir: Path = Field(
        description="Folder, URL or tar files of the pictures; subfolders count. Nothing is written into it."
    )
    source_url: str = ""
    dataset_name: str | None = Field(None, description="Hub id or folder, with type huggingface.")
    dataset_config: str | None = Field(None, description="Configuration of that dataset.")
    split: str = Field("train", description="Its split.")
    revision: str | None = Field(None, description="Its revision.")
    image_column: str = Field("image", description="Column of pictures.")
    caption_column: str = Field(
        "caption", description="Column of captions (huggingface), or key of the .json members (webdataset)."
    )
    fallback_caption_column: str | None = Field(None, description="Column for rows without a caption.")
    csv_file: Path | None = Field(None, description="The CSV file, with type csv.")
    csv_caption_column: str = Field("caption", description="Its column of captions.")
    csv_cache_dir: Path | None = Field(None, description="Where fetched pictures are kept.")
    cache_dir_vae: Path = Field(
        description="Where its latents are kept; may be a URL. By default a folder of its own below cache_dir."
    )
    resolution: Annotated[float, Field(gt=0.0)] = Field(
        description="How large pictures are trained, in the unit of resolution_type."
    )
    resolution_type: Literal["pixel", "area", "pixel_area"] = Field(
        description="pixel_area: as many pixels as a square of this edge; area: megapixels; pixel: the shorter side."
    )
    crop: bool = Field(
        False,
        description="Cut pictures to crop_aspect; without it each keeps its shape, but for the last pixels of its bucket.",
    )
    crop_aspect: Literal["square", "preserve", "closest", "random"] = Field(
        "square",
        description="Shape that is cut: a square, the picture's own, the nearest or any of crop_aspect_buckets.",
    )
    crop_aspect_buckets: Annotated[tuple[tuple[float, float], ...] | None, BeforeValidator(parse_aspects)] = Field(
        None, description="Aspects (width / height) for closest and random: numbers, or {aspect, weight}."
    )
    crop_style: Annotated[Literal["center", "corner", "random"], BeforeValidator(_spelling)] = Field(
        "center", description="Which part is kept."
    )
    minimum_image_size: Nonnegative | None = Field(None, description="Smaller pictures are skipped, and named.")
    maximum_image_size: Nonnegative | None = Field(
        None, description="With crop: larger pictures are first reduced to target_downsample_size."
    )
    target_downsample_size: Nonnegative | None = Field(
        None, description="See maximum_image_size: makes crops of very large pictures show more."
    )
    minimum_aspect_ratio: Nonnegative | None = Field(
        None, description="Narrower pictures (width / height) are skipped."
    )
    maximum_aspect_ratio: Nonnegative | None = Field(None, description="Wider pictures are skipped.")
    max_upscale_threshold: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None, description="closest and random pass over buckets that enlarge a picture by more than this share."
    )
    max_num_samples: Positive | None = Field(None, description="At most so many pictures, a fixed random choice.")
    caption_strategy: Literal[
        "filename", "textfile", "instanceprompt", "parquet", "huggingface", "csv", "webdataset", "null"
    ] = Field(description="Where captions are.")
    instance_prompt: str | tuple[str, ...] | None = Field(
        None,
        description="The caption of all pictures (instanceprompt), or words before each; a list holds alternatives.",
    )
    prepend_instance_prompt: bool = Field(False, description="Put instance_prompt before every caption.")
    only_instance_prompt: bool = Field(False, description="Use instance_prompt alone.")
    parquet: CaptionTableOptions | None = Field(
        None, description="The table of captions, with caption_strategy parquet; its keys are below."
    )
    caption_filter_list: Annotated[tuple[str, ...], BeforeValidator(parse_filter)] = Field(
        (), description="Words and patterns taken out of captions, a list or a file; s/a/b replaces."
    )
    caption_shuffle: CaptionShuffle | None = Field(
        None, description="Captions with their parts in another order; its keys are below."
    )
    disable_multiline_split: bool = Field(False, description="A text file is one caption, not one for each line.")
    repeats: Annotated[int, Field(ge=0)] = Field(0, description="Extra passes an epoch: 1 shows every picture twice.")
    probability: Nonnegative = Field(1.0, description="Share of batches, beside other datasets; 0 leaves it out.")
    train_batch_size: Positive | None = Field(None, description="Pictures per micro-batch of this dataset.")
    start_epoch: Annotated[int, Field(ge=0)] = Field(1, description="First epoch in which it is used.")
    start_step: Annotated[int, Field(ge=0)] = Field(0, description="Optimizer steps done before it is first used.")
    end_epoch: Annotated[int, Field(ge=0)] | None = Field(None, description="Last epoch in which it is used.")
    end_step: Annotated[int, Field(ge=0)] | None = Field(
        None, description="It is used no more once so many optimizer steps are done."
    )
    is_regularisation_data: bool = Field(
        False,
        description="With an adapter: the target is the base model's own prediction, so what is shown does not change.",
    )
    conditioning_data: Annotated[str | None, BeforeValidator(_only_one)] = Field(
        None, description="Id of the dataset with this one's masks."
    )
    timestep_sampling_offset: float = Field(
        0.0, description="Added to the mean of the logit-normal density: above 0 more noise, below less."
    )
    vae_batch_size: Positive = Field(4, description="Pictures per VAE call while caching.")
    vae_cache_ondemand: bool = Field(False, description="Encode latents when first needed, and keep them.")
    vae_cache_disable: bool = Field(False, description="Encode latents whenever needed, and keep none.")
    vae_cache_clear_each_epoch: bool = Field(
        False, description="New random crops and aspects every epoch, encoded anew."
    )
    disable_after_epoch_step: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Its share of batches falls in a line to nothing at this step of the run."
    )


class MaskDataset(Section):
    """Masks for a masked loss (dataset_type conditioning); sizes and crops are those of the pictures they belong to."""

    id: Annotated[str, Field(min_length=1)] = Field(
        description="Its name; conditioning_data of the pictures' entry says it."
    )
    type: Literal["local"] = Field("local", description="A folder.")
    dataset_type: Literal["conditioning"] = Field(description="This kind of entry.")
    conditioning_type: Literal["mask", "segmentation"] = Field(
        description="mask: white counts, black does not, grey in part; segmentation: whatever is not black counts."
    )
    instance_data_dir: Path = Field(description="Masks with the pictures' own file names.")


class TextEmbedsDataset(OnS3):
    """Where text embeds are kept."""

    id: Annotated[str, Field(min_length=1)] = Field(description="Its name.")
    type: Literal["local", "aws"] = Field("local", description="A folder, or a prefix in a bucket.")
    dataset_type: Literal["text_embeds"] = Field(description="This kind of entry.")
    default: bool = Field(False, description="Needed only where there are several.")
    cache_dir: Path = Field(description="Where text embeds are kept; may be a URL.")
    text_cache_ondemand: bool = Field(False, description="Encode captions when first needed, and keep them.")
    text_cache_disable: bool = Field(False, description="Encode captions whenever needed, and keep none.")


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

    def record(self) -> list[dict[str, Any]]:
        """Training and held-out datasets with all that each is set to, JSON-able; addresses may hold a password."""
        return [entry.model_dump(mode="json") for entry in (*self.train, *self.eval)]


FIELD_ALIASES: Mapping[str, str] = {
    "is_regularization_data": "is_regularisation_data",
    "disable": "disabled",
}


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
