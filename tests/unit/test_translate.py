"""No option is lost on the way: each one reaches the plain value that the program works with.

A new option that training/translate.py turns into a plain value belongs into the tables below;
test_every_translated_option_is_in_a_table says so.
"""

import ast
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toy
from PIL import Image
from tables import row_name, value_at

from simpletuner.config.datasets import CaptionShuffle, CaptionTableOptions, ImageDataset
from simpletuner.config.options import section_of
from simpletuner.config.read import RunConfig, load
from simpletuner.data.captions import Shuffle
from simpletuner.data.sampler import BatchSpec, Bucket, Plan
from simpletuner.data.types import Size
from simpletuner.errors import ConfigError
from simpletuner.flow.densities import Uniform
from simpletuner.models.base import Facts
from simpletuner.shared_keys import FILLED_FROM_OPTIONS
from simpletuner.training import translate, translate_data, translate_noise, translate_precision, translate_validation
from simpletuner.training.precision import choose
from simpletuner.training.resuming import Identity

FACTS = Facts(alignment=32, stride=32, patch_size=1, shift=3.0, native_resolution=1024)
TRANSLATE = tuple(
    Path(module.__file__) for module in (translate, translate_data, translate_precision, translate_validation)
)
Read = Callable[..., RunConfig]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Write a configuration with one dataset and load it."""
    monkeypatch.chdir(tmp_path)
    for folder in ("pictures", "masks", "config"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "captions.csv").write_text("filename,caption\na,a cat\n")
    (tmp_path / "library.json").write_text('{"cat": "a photo of a cat"}')

    def make(options: dict[str, Any], fields: dict[str, Any]) -> RunConfig:
        content = {"max_train_steps": 50, "validation_prompt": "a fox", **options}
        masks = {"id": "m", "dataset_type": "conditioning", "conditioning_type": "segmentation"}
        entries = [
            {"id": "a", "instance_data_dir": "pictures", **fields},
            {**masks, "instance_data_dir": "masks"},
            {"id": "t", "dataset_type": "text_embeds", "default": True},
        ]
        (tmp_path / "config" / "config.json").write_text(json.dumps(content))
        (tmp_path / "config" / "multidatabackend.json").write_text(json.dumps(entries))
        return load(environ={})

    return make


def plain(config: RunConfig) -> SimpleNamespace:
    """Every plain value that training/translate.py makes of a configuration."""
    options = config.options
    precision = choose(options.precision.mixed_precision, low_precision_safe=True)
    drawn = translate_noise.density(options, FACTS)
    alignment = translate.bucket_alignment(config, FACTS)
    plan = Plan([Bucket("a", Size(64, 64), tuple(range(24)))], translate_data.drawing(config), options.training.seed)
    total = translate.total_steps(config, plan)
    dataset = translate_data.dataset_source(config, config.datasets.train[0], alignment, FACTS.stride)
    drawing = translate_data.drawing(config)
    text = translate.text_settings(options, ("the family's own",))
    return SimpleNamespace(
        source=translate.load_source(options, precision),
        text=text,
        validation=translate_validation.settings(config),
        pictured=translate_validation.interval(options, plan),
        at_start=translate_validation.draws_at_start(options),
        measured=translate_validation.evaluation_interval(options, plan),
        limits=translate_validation.held_out_limits(options, {"a": 5, "b": 2}),
        shown=translate_validation.shown(options, toy.trainee()),
        overrides=translate.optimizer_overrides(options),
        density=drawn,
        recipe=translate.recipe(options, drawn, total, precision),
        dataset=dataset,
        drawing=drawing,
        turn=drawing.turn("a"),
        total=total,
        text_quantisation=translate_precision.text_quantisation(options, precision, torch.device("cuda")),
        texts=config.datasets.text_cache_dir,
        identity=translate.identity(config, [], precision, text, drawn, "sketch", {}),
    )


OPTIONS: list[tuple[dict[str, Any], str, object]] = [
    ({"pretrained_model_name_or_path": "some/model"}, "source.path", "some/model"),
    ({"revision": "abc"}, "source.revision", "abc"),
    ({"variant": "fp16"}, "source.variant", "fp16"),
    ({"pretrained_transformer_model_name_or_path": "other/one"}, "source.transformer_path", "other/one"),
    ({"pretrained_transformer_subfolder": "ema"}, "source.transformer_subfolder", "ema"),
    ({"text_encoder_1_precision": "nf4-bnb"}, "text_quantisation.name", "nf4-bnb"),
    ({"text_encoder_1_precision": "nf4-bnb"}, "text_quantisation.device.type", "cuda"),
    (
        {"text_encoder_1_precision": "nf4-bnb", "quantize_via": "cpu"},
        "text_quantisation.device.type",
        "cpu",
    ),
    ({"vae_enable_tiling": True}, "source.vae_tiling", True),
    ({"vae_enable_slicing": True}, "source.vae_slicing", True),
    ({"mixed_precision": "no"}, "source.weight_dtype", torch.float32),
    ({"mixed_precision": "no"}, "source.text_dtype", torch.float32),
    ({"mixed_precision": "no"}, "recipe.precision", choose("no", low_precision_safe=True)),
    ({"sana_complex_human_instruction": "one\ntwo"}, "text.instruction", ("one", "two")),
    ({"sana_complex_human_instruction": "None"}, "text.instruction", ()),
    ({"tokenizer_max_length": 77}, "text.max_tokens", 77),
    ({"aspect_bucket_alignment": 64}, "dataset.placement.alignment", 64),
    ({"validation_prompt": "a bear"}, "validation.prompts", (("validation", "a bear"),)),
    (
        {"user_prompt_library": "library.json"},
        "validation.prompts",
        (("validation", "a fox"), ("cat", "a photo of a cat")),
    ),
    ({"validation_negative_prompt": "blurry"}, "validation.negative_prompt", "blurry"),
    ({"validation_guidance": 2.5}, "validation.guidance", 2.5),
    ({"validation_num_inference_steps": 7}, "validation.steps", 7),
    ({"validation_resolution": "512x256"}, "validation.sizes", (Size(512, 256),)),
    ({"num_validation_images": 3}, "validation.images_per_prompt", 3),
    ({"validation_seed": 0}, "validation.seed", 0),
    ({"validation_randomize": True}, "validation.randomize", True),
    ({"validation_batch_size": 3}, "validation.batch_size", 3),
    ({"validation_time_budget": 2.5}, "validation.time_budget", 2.5),
    ({"validation_step_interval": 4}, "pictured.steps", 4),
    ({"validation_epoch_interval": 2}, "pictured.epochs", 2),
    ({"validate_after_step": 3}, "pictured.after_step", 3),
    ({"validate_after_epoch": 3}, "pictured.after_epoch", 3),
    ({"eval_steps_interval": 4}, "measured.steps", 4),
    ({"eval_epoch_interval": 0.25}, "measured.epochs", Fraction(1, 4)),
    ({"eval_epoch_interval": 0.25}, "measured.steps", None),
    ({"checkpoint_step_interval": 7}, "measured.steps", 7),
    ({"num_eval_images": 3}, "limits", {"a": 3, "b": 2}),
    ({"num_eval_images": 3, "eval_dataset_pooling": True}, "limits", {"a": 3}),
    ({"validation_on_startup": False}, "at_start", False),
    ({"disable_benchmark": True}, "at_start", False),
    ({"disable_benchmark": True}, "shown.benchmark", False),
    ({"ema_validation": "ema_only"}, "shown.mode", "ema_only"),
    ({"validation_lycoris_strength": 0.5}, "shown.strength", 0.5),
    ({"model_type": "lora", "init_lora": "pictures"}, "shown.continued", True),
    ({"seed": 5}, "validation.seed", 5),
    ({"seed": 5, "validation_seed": 6}, "recipe.seed", 5),
    ({"flow_schedule_shift": 0.1}, "density.shift", 0.1),
    ({"flow_schedule_auto_shift": True}, "density.shift", "auto"),
    ({"flow_sigmoid_scale": 0.5}, "density.shape.scale", 0.5),
    ({"flow_use_uniform_schedule": True}, "density.shape", Uniform()),
    ({"flow_schedule_shift": 0.1}, "recipe.density.shift", 0.1),
    ({"learning_rate": 3e-4}, "recipe.schedule.peak", 3e-4),
    (
        {"learning_rate": 1e-3, "lr_scale": True, "train_batch_size": 8, "gradient_accumulation_steps": 2},
        "recipe.schedule.peak",
        1e-3 * 16,
    ),
    (
        {"learning_rate": 1e-3, "lr_scale": True, "lr_scale_sqrt": True, "train_batch_size": 9},
        "recipe.schedule.peak",
        1e-3 * 3,
    ),
    (
        {"learning_rate": 1e-3, "lr_scale": True, "train_batch_size": 2, "num_processes": 3},
        "recipe.schedule.peak",
        1e-3 * 6,
    ),
    ({"lr_scheduler": "cosine"}, "recipe.schedule.name", "cosine"),
    ({"lr_scheduler": "cosine", "lr_end": 2e-6}, "recipe.schedule.end", 2e-6),
    ({"lr_scheduler": "cosine", "lr_end": 1.0, "learning_rate": 1e-4}, "recipe.schedule.end", 1e-4),
    ({"lr_warmup_steps": 6}, "recipe.schedule.warmup_steps", 6),
    ({"lr_scheduler": "polynomial", "lr_power": 2.0}, "recipe.schedule.power", 2.0),
    ({"lr_scheduler": "linear"}, "recipe.schedule.end", 0.0),
    ({"lr_scheduler": "linear", "lr_end": 1e-6}, "recipe.schedule.end", 1e-6),
    ({"lr_scheduler": "cosine", "optimizer": "adamw_schedulefree"}, "recipe.schedule.name", "constant"),
    ({"lr_scheduler": "sine", "lr_num_cycles": 3}, "recipe.schedule.cycles", 3),
    ({"lr_scheduler": "wsd", "lr_decay_share": 0.5}, "recipe.schedule.decay_share", 0.5),
    ({"optimizer": "prodigy"}, "recipe.schedule.peak", 1.0),
    ({"optimizer_config": "eps=0.5"}, "overrides", {"eps": 0.5}),
    (
        {"optimizer": "adamw_schedulefree", "lr_warmup_steps": 7, "optimizer_config": "r=1"},
        "overrides",
        {"r": 1, "warmup_steps": 7},
    ),
    ({"max_train_steps": 9}, "recipe.schedule.total_steps", 9),
    ({"max_train_steps": 9}, "total", 9),
    ({"max_train_steps": 0, "num_train_epochs": 3, "train_batch_size": 4}, "total", 18),
    (
        {"max_train_steps": 0, "num_train_epochs": 3, "train_batch_size": 4, "gradient_accumulation_steps": 4},
        "total",
        5,
    ),
    ({"gradient_accumulation_steps": 4}, "recipe.accumulation", 4),
    ({"gradient_accumulation_steps": 4}, "drawing.accumulation", 4),
    ({"max_grad_norm": 0.25}, "recipe.clip_norm", 0.25),
    ({"grad_clip_method": "value"}, "recipe.clip_by_value", True),
    ({"train_batch_size": 6}, "drawing.batch_size", 6),
    ({"num_processes": 2}, "drawing.world_size", 2),
    ({"data_backend_sampling": "uniform"}, "drawing.mixing", "uniform"),
]

# The same by dataset; a dict for value means that several fields are given.
DATASETS: list[tuple[dict[str, Any], str, object]] = [
    ({"id": "b"}, "dataset.id", "b"),
    ({"instance_data_dir": "masks"}, "dataset.folder", Path("masks")),
    ({"cache_dir_vae": "elsewhere"}, "dataset.latent_dir", Path("elsewhere")),
    ({"caption_strategy": "textfile"}, "dataset.captions.strategy", "textfile"),
    ({"instance_prompt": "sks", "only_instance_prompt": True}, "dataset.captions.instance_prompts", ("sks",)),
    ({"instance_prompt": ["a", "b"], "only_instance_prompt": True}, "dataset.captions.instance_prompts", ("a", "b")),
    ({"instance_prompt": "sks", "only_instance_prompt": True}, "dataset.captions.only_instance_prompt", True),
    ({"instance_prompt": "sks", "prepend_instance_prompt": True}, "dataset.captions.prepend_instance_prompt", True),
    ({"disable_multiline_split": True}, "dataset.captions.whole_file", True),
    ({"caption_filter_list": ["blurry"]}, "dataset.captions.remove", ("blurry",)),
    ({"caption_shuffle": {"enable": True}}, "dataset.captions.shuffle", Shuffle()),
    (
        {
            "caption_shuffle": {
                **{"enable": True, "count": 3, "seed": 4, "split_on": "period"},
                **{"position_start": 2, "include_original": False},
            }
        },
        "dataset.captions.shuffle",
        Shuffle(3, 4, "period", 2, False),
    ),
    ({"resolution": 512}, "dataset.placement.resolution", 512),
    ({"resolution": 512, "resolution_type": "pixel"}, "dataset.placement.resolution_type", "pixel"),
    ({"crop": True}, "dataset.placement.crop", True),
    ({"crop": True, "crop_aspect": "preserve"}, "dataset.placement.crop_aspect", "preserve"),
    (
        {"crop": True, "crop_aspect": "closest", "crop_aspect_buckets": [1, 0.75]},
        "dataset.placement.aspect_buckets",
        (1.0, 0.75),
    ),
    (
        {"crop": True, "crop_aspect": "random", "crop_aspect_buckets": [1, {"aspect": 0.75, "weight": 2}]},
        "dataset.placement.aspect_weights",
        (1.0, 2.0),
    ),
    ({"crop": True, "crop_style": "corner"}, "dataset.placement.crop_style", "corner"),
    ({"max_upscale_threshold": 0.2}, "dataset.placement.max_upscale_threshold", 0.2),
    ({"minimum_aspect_ratio": 0.5}, "dataset.placement.minimum_aspect_ratio", 0.5),
    ({"maximum_aspect_ratio": 2.0}, "dataset.placement.maximum_aspect_ratio", 2.0),
    ({"minimum_image_size": 100}, "dataset.placement.minimum_image_size", 100),
    (
        {"crop": True, "maximum_image_size": 2000, "target_downsample_size": 1500},
        "dataset.placement.maximum_image_size",
        2000,
    ),
    (
        {"crop": True, "maximum_image_size": 2000, "target_downsample_size": 1500},
        "dataset.placement.target_downsample_size",
        1500,
    ),
    ({"repeats": 4}, "dataset.repeats", 4),
    ({"max_num_samples": 7}, "dataset.max_samples", 7),
    ({"vae_batch_size": 2}, "dataset.encode_batch", 2),
    ({"vae_cache_ondemand": True}, "dataset.caching", "ondemand"),
    ({"vae_cache_disable": True}, "dataset.caching", "never"),
    ({"timestep_sampling_offset": 0.7}, "dataset.timestep_offset", 0.7),
    ({"conditioning_data": "m"}, "dataset.mask.folder", Path("masks")),
    ({"conditioning_data": "m"}, "dataset.mask.id", "m"),
    ({"conditioning_data": "m"}, "dataset.mask.kind", "segmentation"),
    ({"probability": 0.5}, "turn.probability", 0.5),
    ({"start_epoch": 1, "end_epoch": 4}, "turn.end_epoch", 4),
    ({"end_step": 30}, "turn.end_step", 30),
    ({"train_batch_size": 3}, "turn.batch_size", 3),
]

TABLE = {
    "caption_strategy": "parquet",
    "parquet": {
        **{"path": "captions.csv", "filename_column": "file", "caption_column": "text"},
        **{"fallback_caption_column": "alt", "identifier_includes_extension": True},
    },
}
DATASETS += [
    (TABLE, "dataset.table.path", Path("captions.csv")),
    (TABLE, "dataset.table.filename_column", "file"),
    (TABLE, "dataset.table.caption_column", "text"),
    (TABLE, "dataset.table.fallback_caption_column", "alt"),
    (TABLE, "dataset.table.includes_extension", True),
]

DATASETS += [
    ({"crop": True, "crop_style": "random", "vae_cache_clear_each_epoch": True}, "dataset.redraw", True),
    ({"crop": True, "crop_style": "random", "vae_cache_clear_each_epoch": True}, "dataset.caching", "ondemand"),
    ({"disable_after_epoch_step": 40}, "turn.fade_step", 40),
]

TARS = {"type": "webdataset", "instance_data_dir": "a-{0..3}.tar", "caption_strategy": "webdataset"}
DATASETS += [
    ({"cache_dir_vae": "s3://kept/latents"}, "dataset.latent_remote.url", "s3://kept/latents"),
    (TARS, "dataset.tars.place", "a-{0..3}.tar"),
    (TARS, "dataset.tars.captions", "members"),
    ({**TARS, "caption_column": "text"}, "dataset.tars.caption_column", "text"),
]

# Options that fill in what a dataset leaves out.
FILLED: list[tuple[dict[str, Any], str, object]] = [
    ({"caption_strategy": "textfile"}, "dataset.captions.strategy", "textfile"),
    ({"instance_prompt": "sks", "caption_strategy": "instanceprompt"}, "dataset.captions.instance_prompts", ("sks",)),
    ({"instance_prompt": "sks", "only_instance_prompt": True}, "dataset.captions.only_instance_prompt", True),
    ({"instance_prompt": "sks", "prepend_instance_prompt": True}, "dataset.captions.prepend_instance_prompt", True),
    ({"resolution": 512}, "dataset.placement.resolution", 512),
    ({"resolution_type": "pixel"}, "dataset.placement.resolution_type", "pixel"),
    ({"minimum_image_size": 100}, "dataset.placement.minimum_image_size", 100),
    ({"maximum_image_size": 90, "target_downsample_size": 80}, "dataset.placement.maximum_image_size", 90),
    ({"maximum_image_size": 90, "target_downsample_size": 80}, "dataset.placement.target_downsample_size", 80),
    ({"max_upscale_threshold": 0.2}, "dataset.placement.max_upscale_threshold", 0.2),
    ({"vae_batch_size": 2}, "dataset.encode_batch", 2),
    ({"vae_cache_ondemand": True}, "dataset.caching", "ondemand"),
    ({"vae_cache_disable": True}, "dataset.caching", "never"),
    ({"cache_dir_vae": "latents"}, "dataset.latent_dir", Path("latents/a")),
    ({"cache_dir": "all"}, "dataset.latent_dir", Path("all/vae/a")),
    ({"output_dir": "there"}, "dataset.latent_dir", Path("there/cache/vae/a")),
    ({"cache_dir_text": "texts"}, "texts", Path("texts")),
    ({"cache_dir": "all"}, "texts", Path("all/text")),
]


@pytest.mark.parametrize(("given", "path", "expected"), OPTIONS, ids=row_name)
def test_an_option_reaches_its_plain_value(read: Read, given: dict[str, Any], path: str, expected: object) -> None:
    assert value_at(plain(read({}, {})), path) != expected, "this row could not fail"
    assert value_at(plain(read(given, {})), path) == expected


@pytest.mark.parametrize(("given", "path", "expected"), FILLED, ids=row_name)
def test_an_option_fills_in_what_a_dataset_leaves_out(
    read: Read, given: dict[str, Any], path: str, expected: object
) -> None:
    assert value_at(plain(read({}, {})), path) != expected, "this row could not fail"
    assert value_at(plain(read(given, {})), path) == expected


@pytest.mark.parametrize(("given", "path", "expected"), DATASETS, ids=row_name)
def test_a_dataset_field_reaches_its_plain_value(
    read: Read, given: dict[str, Any], path: str, expected: object
) -> None:
    assert value_at(plain(read({}, {})), path) != expected, "this row could not fail"
    assert value_at(plain(read({}, given)), path) == expected


def test_a_dataset_may_start_later(read: Read) -> None:
    """start_epoch and start_step, which the only dataset of a run cannot have."""
    config = read({}, {})
    first = config.datasets.train[0]
    for field, value in (("start_epoch", 3), ("start_step", 12)):
        later = first.model_copy(update={field: value, "id": "later"})
        datasets = type(config.datasets)((first, later), (), Path("texts"))
        turn = translate_data.drawing(RunConfig(config.options, datasets, (), (), "")).turn("later")
        assert getattr(turn, field) == value


def test_a_segmentation_acts_in_the_share_asked_for(read: Read) -> None:
    assert plain(read({"masked_loss_probability": 0.25}, {"conditioning_data": "m"})).dataset.mask.probability == 0.25


def test_a_mask_acts_always(read: Read) -> None:
    config = read({"masked_loss_probability": 0.25}, {"conditioning_data": "m"})
    mask = config.datasets.masks["m"].model_copy(update={"conditioning_type": "mask"})
    datasets = replace(config.datasets, masks={"m": mask})
    assert plain(replace(config, datasets=datasets)).dataset.mask.probability == 1.0


def test_the_held_out_loss_is_never_masked(read: Read) -> None:
    config = read({}, {"conditioning_data": "m"})
    held_out = config.datasets.train[0].model_copy(update={"dataset_type": "eval"})
    assert translate_data.dataset_source(config, held_out, 32).mask is None


def test_pictures_at_the_start_that_are_asked_for_are_drawn_without_the_benchmark_too(read: Read) -> None:
    made = plain(read({"disable_benchmark": True, "validation_on_startup": True}, {}))
    assert made.at_start and not made.shown.benchmark


def test_sizes_are_checked_only_where_something_is_drawn(read: Read) -> None:
    with pytest.raises(ConfigError, match="validation_resolution"):
        translate.check_validation_sizes(read({"validation_resolution": "100x100"}, {}), FACTS)
    off = {"validation_resolution": "100x100", "validation_disable": True}
    translate.check_validation_sizes(read(off, {}), FACTS)


def test_every_option_that_fills_in_is_in_a_table() -> None:
    assert not set(FILLED_FROM_OPTIONS) - {key for given, _, _ in FILLED for key in given}


def test_a_warm_up_longer_than_its_epochs_is_told_once_the_steps_are_known(read: Read) -> None:
    epochs = read({"max_train_steps": 0, "num_train_epochs": 1, "lr_warmup_steps": 6}, {}).options
    assert "lasts as long as the run (6 steps)" in translate.notes_on_length(epochs, 6)[0]
    assert not translate.notes_on_length(epochs, 7)
    assert not translate.notes_on_length(read({"lr_warmup_steps": 60}, {}).options, 50)  # told by the configuration


def test_problems_found_late_name_the_place_of_the_value(tmp_path: Path, read: Read) -> None:
    read({}, {})
    given = {
        "validation_resolution": "100x100",
        "optimizer_config": "nesterov=true",
        "aspect_bucket_alignment": "48",
    }
    environ = {"SIMPLETUNER_OPTIMIZER": "torch-sgd"}
    config = load(overrides=given, environ=environ)
    late = (
        lambda: translate.check_validation_sizes(config, FACTS),
        lambda: translate.check_optimizer(config, choose("no", low_precision_safe=False), torch.device("cpu")),
        lambda: translate.bucket_alignment(config, FACTS),
    )
    for check in late:
        with pytest.raises(ConfigError) as caught:
            check()
        assert [p.file for p in caught.value.problems] == ["command line"]
    assert config.place("optimizer") == "environment"
    assert config.place("max_train_steps") == config.place("seed") == config.config_file


def test_an_alignment_the_model_cannot_take_is_refused(read: Read) -> None:
    with pytest.raises(ConfigError, match=r"aspect_bucket_alignment.*multiples of 32"):
        plain(read({"aspect_bucket_alignment": 48}, {}))


# What changes the order or the recipe of a run is told when it is resumed; these must therefore be in its identity.
@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"optimizer": "torch-adamw"}, {}),
        ({"fuse_optimizer": True, "max_grad_norm": 0}, {}),
        ({"lr_scale": True}, {}),
        ({"lr_num_cycles": 2}, {}),
        ({"lr_decay_share": 0.3}, {}),
        ({"gradient_precision": "fp32"}, {}),
        ({"layer_freeze_strategy": "bitfit"}, {}),
        ({"use_ema": True}, {}),
        ({"ema_decay": 0.9}, {}),
        ({"ema_update_interval": 2}, {}),
        ({"ema_warmup_steps": 2}, {}),
        ({"train_batch_size": 2}, {}),
        ({"num_processes": 2}, {}),
        ({"gradient_accumulation_steps": 2}, {}),
        ({"seed": 1}, {}),
        ({"model_type": "lora"}, {}),
        ({"lora_dropout": 0.1}, {}),
        ({}, {"is_regularisation_data": True}),
        ({"data_backend_sampling": "uniform"}, {}),
        ({"mixed_precision": "fp16"}, {}),
        ({"caption_dropout_probability": 0.3}, {}),
        ({"masked_loss_probability": 0.3}, {}),
        ({"flow_schedule_shift": 1.0}, {}),
        ({"flow_sigmoid_scale": 0.5}, {}),
        ({"sana_complex_human_instruction": "None"}, {}),
        ({"tokenizer_max_length": 77}, {}),
        ({}, {"repeats": 1}),
        ({}, {"probability": 0.5}),
        ({}, {"timestep_sampling_offset": 0.5}),
    ],
    ids=row_name,
)
def test_what_shapes_a_run_is_in_its_identity(read: Read, given: dict[str, Any], fields: dict[str, Any]) -> None:
    assert plain(read(given, fields)).identity != plain(read({}, {})).identity


def test_the_same_pictures_in_a_step_are_the_same_run_however_many_processes_share_them(read: Read) -> None:
    """Each step has the same pictures, and on resume nothing is told; with other pictures it is."""

    def of(processes: int, batch: int, own: int) -> tuple[Identity, list[BatchSpec]]:
        config = read(
            {"num_processes": processes, "train_batch_size": batch, "lr_scale": True}, {"train_batch_size": own}
        )
        plan = Plan([Bucket("a", Size(64, 64), tuple(range(13)))], translate_data.drawing(config), 7)
        return plain(config).identity, [plan.batch(position) for position in range(20)]

    (one, alone), (two, shared), (other, more) = of(1, 4, 2), of(2, 2, 1), of(2, 4, 2)
    assert alone == shared != more and {len(batch.members) for batch in shared} == {2}
    assert one == two and one.compare(two.as_dict(), "checkpoint-1") == []
    order, recipe = one.compare(other.as_dict(), "checkpoint-1")
    assert "train_batch_size × num_processes" in order and "turns" in order
    assert "learning_rate" in recipe, "with lr_scale it goes with the pictures of a step"


def attributes_read(source: str) -> set[str]:
    """Names of all attributes that some Python source reads."""
    nodes = ast.walk(ast.parse(source))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


FIELDS = {*ImageDataset.model_fields, *CaptionShuffle.model_fields, *CaptionTableOptions.model_fields}
# Read in translate.py, but by tests of their own.
ELSEWHERE = {
    *("base_model_precision", "base_model_default_dtype"),  # test_precision_rules.py
    "caption_dropout_probability",  # recorded in the identity here; acts in run.py (test_options_act.py)
    "optimizer",  # likewise
    "eval_dataset_id",  # test_held_out_options.py
    "eval_loss_disable",  # test_check_beside_a_run.py
    *("model_type", "lora_dropout", "is_regularisation_data"),  # test_adapter_options.py
    *("gradient_precision", "layer_freeze_strategy"),  # likewise
    *("use_ema", "ema_decay", "ema_update_interval", "ema_warmup_steps"),  # likewise
    "transformer_forward",  # recorded in the identity here; acts in assemble.py (test_fast_forward.py)
    "validation_disable",  # test_sizes_are_checked_only_where_something_is_drawn
    "dataset_type",  # test_the_held_out_loss_is_never_masked
    "conditioning_type",  # test_a_mask_acts_always
    "start_epoch",  # test_a_dataset_may_start_later
    "start_step",
    *("aws_access_key_id", "aws_secret_access_key", "aws_endpoint_url", "aws_region_name", "source_url"),  # test_s3.py
    "cache_url",  # derived; test_remote_cache.py
    *("dataset_name", "dataset_config", "split", "revision"),  # test_hub_dataset.py
    *("image_column", "caption_column", "fallback_caption_column", "type"),
    *("csv_file", "csv_caption_column"),  # test_csv_dataset.py
    "masked_loss_probability",  # test_a_segmentation_acts_in_the_share_asked_for
}


def test_every_translated_option_is_in_a_table() -> None:
    tested = {key for given, _, _ in [*OPTIONS, *DATASETS] for key in given}
    for given, _, _ in DATASETS:
        tested |= {key for value in given.values() if isinstance(value, dict) for key in value}
    read = set().union(*(attributes_read(file.read_text(encoding="utf-8")) for file in TRANSLATE))
    translated = read & {*section_of(), *FIELDS}
    assert len(translated) > 60, "the scan finds nothing"
    assert not translated - tested - ELSEWHERE
