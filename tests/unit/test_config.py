"""The configuration room: precedence, spelling, the four classes of keys, and every problem at once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from simpletuner.config.catalogue import CATALOGUE, FLAVOURS, OTHER_OPTIMIZERS
from simpletuner.config.examples import copy
from simpletuner.config.optimizer_names import OptimizerName
from simpletuner.config.options import section_of
from simpletuner.config.read import RunConfig, load
from simpletuner.errors import ConfigError, TunerError
from simpletuner.wording import install

GUIDE = Path(__file__).resolve().parent.parent / "fixtures" / "guide"
ROOT = GUIDE.parent.parent.parent


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """Write a configuration and load it with nothing from the outside environment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()

    def make(
        options: dict[str, Any] | None = None,
        datasets: Any = None,
        overrides: dict[str, Any] | None = None,
        environ: dict[str, str] | None = None,
    ) -> RunConfig:
        (tmp_path / "config").mkdir(exist_ok=True)
        content = {"max_train_steps": 5, **(options or {})}
        entries = [{"id": "a", "instance_data_dir": "pictures"}] if datasets is None else datasets
        (tmp_path / "config" / "config.json").write_text(json.dumps(content))
        (tmp_path / "config" / "multidatabackend.json").write_text(json.dumps(entries))
        return load(overrides=overrides, environ=environ or {})

    return make


def problems(make: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        make()
    return [str(p) for p in caught.value.problems]


def test_precedence_is_command_line_environment_file_default(write: Callable[..., RunConfig]) -> None:
    file = {"train_batch_size": 2}
    environ = {"SIMPLETUNER_TRAIN_BATCH_SIZE": "3"}
    command = {"train_batch_size": "5"}
    assert write().options.training.train_batch_size == 4
    assert write(file).options.training.train_batch_size == 2
    assert write(file, environ=environ).options.training.train_batch_size == 3
    assert write(file, environ=environ, overrides=command).options.training.train_batch_size == 5


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), (False, False), ("true", True), ("false", False), ("False", False), ("1", True)],
)
def test_booleans_mean_what_they_say(write: Callable[..., RunConfig], value: Any, expected: bool) -> None:
    assert write({"--gradient-checkpointing": value}).options.precision.gradient_checkpointing is expected


def test_spellings_of_a_key(write: Callable[..., RunConfig]) -> None:
    for key in ("train_batch_size", "--train_batch_size", "--train-batch-size", "train-batch-size"):
        assert write({key: 9}).options.training.train_batch_size == 9
    options = write({"checkpointing_steps": 7, "validation_steps": 3, "save_total_limit": 2}).options
    assert options.checkpoints.checkpoint_step_interval == 7
    assert options.validation.validation_step_interval == 3
    assert options.checkpoints.checkpoints_total_limit == 2


def test_empty_values_mean_not_given(write: Callable[..., RunConfig]) -> None:
    assert write({"learning_rate": None, "optimizer": ""}).options.training.learning_rate == 1e-5
    for value in (None, False, "false", ""):
        assert not write({"resume_from_checkpoint": value}).options.checkpoints.resume_from_checkpoint
    assert write().options.checkpoints.resume_from_checkpoint == "latest"


def test_an_empty_value_on_the_command_line_takes_out_what_the_file_says(write: Callable[..., RunConfig]) -> None:
    file = {"--webhook-config": {"webhook_type": "raw", "callback_url": "http://127.0.0.1:9/"}, "learning_rate": 1e-3}
    taken = write(file, overrides={"webhook-config": "", "learning_rate": ""})
    assert taken.options.reporting.webhook_config is None and taken.options.training.learning_rate == 1e-5
    assert f"it is empty on the command line, so what {taken.config_file} says does not count" in taken.notices[0]
    kept = write(file, environ={"SIMPLETUNER_LEARNING_RATE": ""}, overrides={"lr_warmup_steps": ""})
    assert kept.options.training.learning_rate == 1e-3 and "command line" not in "".join(kept.notices)
    secret = {**file, "--webhook-config": {"webhook_type": "raw", "callback_url": "{env:NOT_HERE}"}}
    assert "the environment has no NOT_HERE" in problems(lambda: write(secret))[0]
    assert write(secret, overrides={"webhook_config": ""}).options.reporting.webhook_config is None
    asked = write(file, environ={"SIMPLETUNER_SEED": "3"}, overrides={"seed": ""})
    assert "seed: it is empty on the command line, so what the environment says does not count" in asked.notices
    (text,) = problems(lambda: write(file, overrides={"webhook_confg": ""}))
    assert "there is no such option" in text and "'webhook_config'" in text
    assert not write(file, overrides={"resume_from_checkpoint": ""}).options.checkpoints.resume_from_checkpoint


def test_unknown_keys_name_the_nearest(write: Callable[..., RunConfig]) -> None:
    (text,) = problems(lambda: write({"train_batchsize": 2}))
    assert "config.json: train_batchsize = 2" in text and "'train_batch_size'" in text


def test_all_problems_are_listed_at_once(write: Callable[..., RunConfig]) -> None:
    texts = problems(
        lambda: write(
            {
                "train_batch_size": 0,
                "lr_scheduler": "cosin",
                "enable_group_offload": "true",
                "nonsense": 1,
                "lora_type": "lokr",
                "learning_rate": "fast",
            }
        )
    )
    joined = "\n".join(texts)
    assert len(texts) == 6
    for key in ("train_batch_size", "lr_scheduler", "enable_group_offload", "nonsense", "lora_type", "learning_rate"):
        assert f": {key} = " in joined
    assert "did you mean 'cosine'" in joined and "not yet" in joined


def test_options_and_datasets_are_checked_together(write: Callable[..., RunConfig]) -> None:
    entries = [
        {"id": "a", "instance_data_dir": "nowhere", "caption_strategy": "instanceprompt"},
        {"id": "a", "instance_data_dir": "pictures", "crop_aspct": "square", "crop_style": "face", "type": "memory"},
    ]
    texts = "\n".join(problems(lambda: write({"flow_schedule_shift": 3, "flow_schedule_auto_shift": True}, entries)))
    for expected in ("[a].instance_data_dir", "instance_prompt", "crop_aspct", "'crop_aspect'", "crop_style", "[a].type",
                     "flow_schedule_shift", "2 entries have this id"):  # fmt: skip
        assert expected in texts, texts


def test_satisfied_keys_say_how_and_off_values_say_nothing(write: Callable[..., RunConfig]) -> None:
    notices = write({"compress_disk_cache": True, "max_workers": 16, "push_to_hub": False, "report_to": "none"}).notices
    assert any("compress_disk_cache" in n and "packed" in n for n in notices)
    assert any("max_workers" in n for n in notices)
    assert not any("push_to_hub" in n or "report_to" in n for n in notices)


REFUSED = [("attention_mechanism", "sageattention"), ("base_model_precision", "int8-quanto"),
           ("optimizer", "sdnq-lion"), ("optimizer", "adamw_schedulefree+no_kahan"), ("fsdp_enable", True),
           ("mixed_precision", "fp8"), ("delete_problematic_images", True),
           ("scheduled_sampling_reflexflow", True), ("report_to", "custom-tracker")]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_refused_values_give_a_reason(write: Callable[..., RunConfig], key: str, value: Any) -> None:
    (text,) = problems(lambda: write({key: value}))
    assert key in text and "refused" in text


@pytest.mark.parametrize("value", ["xformers", "sageattention"])
def test_an_attention_that_is_refused_is_refused_for_a_reason_of_its_own(
    write: Callable[..., RunConfig], value: str
) -> None:
    (text,) = problems(lambda: write({"attention_mechanism": value}))
    assert "no library of attention kernels" in text and "SageAttention" not in text


def test_no_key_is_in_two_classes() -> None:
    assert not set(section_of()) & set(CATALOGUE)
    assert not set(OTHER_OPTIMIZERS) & set(get_args(OptimizerName))
    assert all(known.status in ("satisfied", "refused") and known.text for known in CATALOGUE.values())


def test_the_guides_dataloader_file_loads_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pseudo-camera-10k", "dreambooth-subject"):
        (tmp_path / "datasets" / name).mkdir(parents=True)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text('{"max_train_steps": 1, "model_type": "full"}')
    text = (GUIDE / "multidatabackend.json").read_text()
    (tmp_path / "config" / "multidatabackend.json").write_text(text)
    datasets = load(environ={}).datasets
    assert [e.id for e in datasets.train] == ["pseudo-camera-10k-sana", "dreambooth-subject", "dreambooth-subject-512"]
    assert datasets.train[0].crop and datasets.train[0].crop_style == "center" and datasets.train[0].resolution == 512
    assert datasets.train[1].instance_data_dir == datasets.train[2].instance_data_dir
    assert datasets.train[1].repeats == 1000
    assert datasets.text_cache_dir == Path("cache/text/sana")
    said = load(environ={}).notices
    assert any("is_regularisation_data" in n and "ordinary data" in n for n in said)
    idle = "maximum_image_size, target_downsample_size: not used, since crop is false"
    told = [n.partition("]")[0] for n in said if n.endswith(idle)]
    assert told == ["[dreambooth-subject", "[dreambooth-subject-512"], "the third is cropped"


@pytest.mark.parametrize("name", ["library", "library_format", "fragment"])
def test_the_guides_other_blocks_load(write: Callable[..., RunConfig], tmp_path: Path, name: str) -> None:
    content = json.loads((GUIDE / f"{name}.json").read_text())
    (tmp_path / "config").mkdir(exist_ok=True)
    library = {"nickname": "p"} if name == "fragment" else content
    (tmp_path / "config" / "user_prompt_library.json").write_text(json.dumps(library))
    options = content if name == "fragment" else {"user_prompt_library": "config/user_prompt_library.json"}
    assert dict(write(options).prompts) == library


def test_the_guides_previews_act(write: Callable[..., RunConfig]) -> None:
    previews = write(json.loads((GUIDE / "preview.json").read_text())).options.previews
    assert previews.validation_preview and previews.validation_preview_steps == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"validation_preview_steps": 3}, "validation_preview_steps: it acts with validation_preview only"),
        ({"validation_preview_decoder": "x.pth"}, "validation_preview_decoder: it acts with validation_preview only"),
        ({"pretrained_evaluation_model_name_or_path": "a/clip"}, "it acts with evaluation_type clip only"),
        ({"validation_preview": True, "validation_disable": True}, "nothing is drawn with validation_disable"),
        ({"validation_preview": True, "validation_preview_steps": 5, "evaluation_type": "clip"}, ""),
    ],
)
def test_previews_and_scores_that_change_nothing_are_told(
    write: Callable[..., RunConfig], given: dict[str, object], said: str
) -> None:
    notices = [n for n in write(given).notices if "preview" in n or "evaluation" in n]
    assert len(notices) == bool(said) and all(said in notice for notice in notices)


def test_a_clip_that_is_not_there_is_a_problem_even_where_nothing_is_drawn(write: Callable[..., RunConfig]) -> None:
    asked = {
        "evaluation_type": "clip",
        "pretrained_evaluation_model_name_or_path": "./clip",
        "validation_disable": True,
    }
    (text,) = problems(lambda: write(asked))
    assert "pretrained_evaluation_model_name_or_path = './clip': there is no such folder → give a folder" in text
    Path("clip").mkdir()
    assert write(asked).options.validation.validation_disable


def test_the_guides_keys_each_act(write: Callable[..., RunConfig]) -> None:
    options = write(
        {
            "model_type": "full",
            "model_family": "sana",
            "pretrained_model_name_or_path": "terminusresearch/sana-1.6b-1024px",
            "output_dir": "out",
            "train_batch_size": 6,
            "validation_resolution": "1024x1024,1280x768,2048x2048",
            "validation_guidance": 5,
            "validation_num_inference_steps": 50,
            "use_ema": "true",
            "optimizer": "optimi-adamw",
            "mixed_precision": "bf16",
            "gradient_checkpointing": True,
            "gradient_checkpointing_interval": 2,
            "flow_schedule_shift": 0.1,
        }
    ).options
    assert options.validation.validation_resolution == ((1024, 1024), (1280, 768), (2048, 2048))
    assert options.flow.flow_schedule_shift == 0.1 and options.ema.use_ema
    assert options.precision.gradient_checkpointing_interval == 2


def test_environments_toml_and_env_files(write: Callable[..., RunConfig], tmp_path: Path) -> None:
    write()
    folder = tmp_path / "config" / "other"
    folder.mkdir()
    (folder / "config.toml").write_text("max_train_steps = 9\ntrain_batch_size = 3\n")
    (folder / "multidatabackend.json").write_text((tmp_path / "config" / "multidatabackend.json").read_text())
    assert load(env="other", environ={}).options.training.train_batch_size == 3
    assert load(environ={"SIMPLETUNER_ENVIRONMENT": "other"}).options.training.max_train_steps == 9
    assert load(environ={"CONFIG_PATH": str(folder)}).options.training.max_train_steps == 9
    (text,) = problems(lambda: load(env="missing", environ={}))
    assert "config/missing: --env = 'missing'" in text
    for name in ("SIMPLETUNER_ENVIRONMENT", "SIMPLETUNER_ENV"):
        (text,) = problems(lambda name=name: load(environ={name: "missing"}))
        assert f"config/missing: {name} = 'missing'" in text and f"or unset {name}" in text
    (tmp_path / "config" / "shell").mkdir()
    (tmp_path / "config" / "shell" / "config.env").write_text("MODEL_TYPE=full\n")
    (text,) = problems(lambda: load(env="shell", environ={}))
    assert "config.env" in text and "config.json" in text


def test_variables_from_the_environment(write: Callable[..., RunConfig]) -> None:
    options = write({"output_dir": "{env:RUNS}/x"}, environ={"RUNS": "/data"}).options
    assert options.checkpoints.output_dir == Path("/data/x")
    (text,) = problems(lambda: write({"output_dir": "{env:RUNS}/x"}))
    assert "RUNS" in text


def test_both_lengths_or_none_are_problems(write: Callable[..., RunConfig]) -> None:
    assert "num_train_epochs" in problems(lambda: write({"num_train_epochs": 2}))[0]
    assert "both 0 or not given" in problems(lambda: write({"max_train_steps": 0}))[0]
    assert write({"max_train_steps": 0, "num_train_epochs": 2}).options.training.num_train_epochs == 2


def test_json_errors_name_line_and_column(write: Callable[..., RunConfig], tmp_path: Path) -> None:
    write()
    (tmp_path / "config" / "config.json").write_text('{\n  "max_train_steps": 5,\n}\n')
    (text,) = problems(lambda: load(environ={}))
    assert "config.json:3" in text or "config.json:2" in text
    (tmp_path / "config" / "config.json").write_text('  "--user_prompt_library": "x.json",\n')
    assert "one {...}" in problems(lambda: load(environ={}))[0]


def test_flavours_name_their_weights(write: Callable[..., RunConfig]) -> None:
    for flavour, path in FLAVOURS.items():
        assert write({"model_flavour": flavour}).options.model.pretrained_model_name_or_path == path
    assert "sana1.0-1.6b-1024" in problems(lambda: write({"model_flavour": "sana1.0-1.6b-1025"}))[0]


def test_the_instruction_can_be_text_list_file_or_off(write: Callable[..., RunConfig], tmp_path: Path) -> None:
    def instruction(value: Any) -> Any:
        return write({"sana_complex_human_instruction": value}).options.model.sana_complex_human_instruction

    assert instruction(None) is None and instruction("None") == ()
    assert instruction("one\ntwo") == ("one", "two") == instruction(["one", "two"]) == instruction('["one", "two"]')
    (tmp_path / "prefix.txt").write_text("one\ntwo\n")
    assert instruction("prefix.txt") == ("one", "two")


def test_optimizer_arguments(write: Callable[..., RunConfig]) -> None:
    training = write({"optimizer_config": "beta1=0.8,beta2=0.9,weight_decay=0.1"}).options.training
    assert training.optimizer_arguments() == {"betas": (0.8, 0.9), "weight_decay": 0.1}
    assert "go together" in problems(lambda: write({"optimizer_beta1": 0.9}))[0]
    assert "has no argument 'nonsense'" in problems(lambda: write({"optimizer_config": "nonsense=1"}))[0]


# What is given, and the keys of the problems that are listed for it, all at once.
IMPOSSIBLE: list[tuple[dict[str, Any], set[str]]] = [
    ({"optimizer": "adamw_bf16", "mixed_precision": "no"}, {"optimizer"}),
    ({"optimizer": "adamw_bf16", "mixed_precision": "fp16"}, {"optimizer"}),
    ({"optimizer": "adamw_schedulefree", "use_ema": True}, {"use_ema"}),
    ({"model_type": "lora", "layer_freeze_strategy": "bitfit"}, {"layer_freeze_strategy"}),
    ({"optimizer_release_gradients": True}, {"grad_clip_method"}),
    (
        {"fuse_optimizer": True, "gradient_accumulation_steps": 2, "mixed_precision": "fp16", "optimizer": "prodigy"},
        {"grad_clip_method", "gradient_accumulation_steps", "mixed_precision", "optimizer"},
    ),
]


@pytest.mark.parametrize(("given", "keys"), IMPOSSIBLE)
def test_what_cannot_be_together_is_listed(
    write: Callable[..., RunConfig], given: dict[str, Any], keys: set[str]
) -> None:
    texts = problems(lambda: write(given))
    assert len(texts) == len(keys) and all(any(f": {key} = " in text for text in texts) for key in keys)
    assert all("→" in text for text in texts), "each says what to do"


@pytest.mark.parametrize("clipping", [{"max_grad_norm": 0}, {"grad_clip_method": "value"}])
def test_gradient_release_goes_with_other_clipping(write: Callable[..., RunConfig], clipping: dict[str, Any]) -> None:
    assert write({"optimizer_release_gradients": True, **clipping}).options.training.releases_gradients()


def test_a_missing_package_is_named_with_what_to_install(
    write: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simpletuner.config.optimizer_rules.find_spec", lambda name: None)
    (text,) = problems(lambda: write({"optimizer": "bnb-lion8bit-paged"}))
    assert "bitsandbytes" in text and text.endswith(install("bnb"))
    assert write({"optimizer": "prodigy"})


IDLE: list[tuple[dict[str, Any], str]] = [
    (
        {"lr_num_cycles": 3},
        "lr_num_cycles: ignored, since it acts only with lr_scheduler cosine_with_restarts and sine",
    ),
    ({"lr_decay_share": 0.5}, "lr_decay_share: ignored, since it acts only with lr_scheduler wsd"),
    ({"lr_end": 1e-8}, "lr_end: ignored, since lr_scheduler constant_with_warmup has no end value"),
    (
        {"optimizer": "adamw_schedulefree", "lr_scheduler": "cosine"},
        "lr_scheduler: ignored, since adamw_schedulefree needs no",
    ),
    (
        {"optimizer": "radam_schedulefree", "lr_warmup_steps": 3},
        "lr_warmup_steps: ignored, since radam_schedulefree warms up",
    ),
    ({"model_type": "lora", "optimizer": "adamw_bf16", "mixed_precision": "no"}, "adapter weights are float32"),
    ({"gradient_precision": "fp32"}, "gradient_precision: a sum of fewer than three"),
    ({"ema_warmup_steps": 5, "ema_cpu_only": True}, "ema_warmup_steps, ema_cpu_only: without use_ema"),
    ({"optimizer": "prodigy", "learning_rate": 1e-5}, "learning_rate 1e-05 multiplies prodigy's own estimate; 1 is"),
    ({"lr_warmup_steps": 5}, "lr_warmup_steps 5 lasts as long as the run (5 steps) or longer"),
    ({"lr_warmup_steps": 9, "lr_scheduler": "cosine"}, "lr_warmup_steps 9 lasts as long"),
    ({"lr_warmup_steps": 9, "optimizer": "adamw_schedulefree"}, "lr_warmup_steps 9 lasts as long"),
]


@pytest.mark.parametrize(("given", "said"), IDLE)
def test_what_has_no_effect_is_said(write: Callable[..., RunConfig], given: dict[str, Any], said: str) -> None:
    assert any(said in notice for notice in write(given).notices)


@pytest.mark.parametrize(
    ("given", "unsaid"),
    [
        ({"optimizer": "prodigy", "learning_rate": 1}, "own estimate"),
        ({"optimizer": "prodigy"}, "own estimate"),
        ({"lr_warmup_steps": 4}, "lasts as long"),
        ({"lr_warmup_steps": 9, "optimizer": "radam_schedulefree"}, "lasts as long"),
        ({"lr_warmup_steps": 9, "max_train_steps": 0, "num_train_epochs": 1}, "lasts as long"),
    ],
)
def test_nothing_is_said_where_nothing_is_unusual(
    write: Callable[..., RunConfig], given: dict[str, Any], unsaid: str
) -> None:
    assert not any(unsaid in notice for notice in write(given).notices)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"train_batch_size": 0}, "train_batch_size = 0: it is too small → it must be 1 or more"),
        ({"lora_dropout": 1}, "lora_dropout = 1: it is too large → it must be less than 1.0"),
        ({"learning_rate": 0}, "learning_rate = 0: it is too small → it must be more than 0.0"),
        ({"caption_dropout_probability": 2}, "it is too large → it must be 1.0 or less"),
        ({"ema_device": "disk"}, "ema_device = 'disk': there is no such value → use accelerator or cpu"),
        ({"lr_scheduler": "cosin"}, "there is no such value → did you mean 'cosine'? It takes constant, "),
        ({"optimizer": "lion"}, "optimizer = 'lion': there is no such value → "),
        ({"validation_resolution": "wide"}, "'wide' is not WIDTHxHEIGHT → it takes: WxH, several with commas."),
        ({"lora_type": "lokr"}, """set lora_type to lycoris, and "algo": "lokr" in lycoris_config"""),
        ({"learning_rate": "inf"}, "it must be a finite number"),
    ],
)
def test_a_value_out_of_bounds_is_told_with_what_to_do(
    write: Callable[..., RunConfig], given: dict[str, Any], said: str
) -> None:
    (text,) = problems(lambda: write(given))
    assert said in text and "Input should" not in text


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("caption_shuffle", {"cnt": 3}, "it has no key 'cnt'"),
        ("caption_shuffle", {"count": 0}, "count: it is too small → it must be 1 or more"),
        ("caption_shuffle", {"split_on": "word"}, "split_on: there is no such value → use comma, space or period"),
        ("parquet", {"caption_column": "text"}, "its path is missing → add path"),
    ],
)
def test_a_key_inside_an_entrys_object_is_named(
    write: Callable[..., RunConfig], field: str, value: Any, said: str
) -> None:
    (text,) = problems(lambda: write(datasets=[{"id": "a", "instance_data_dir": "pictures", field: value}]))
    assert f"[a].{field}" in text and text.endswith(said)


def test_a_tar_in_a_local_dataset_names_the_type_that_reads_it(write: Callable[..., RunConfig], tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    for place in ("a.tar", "shards/s-{000..009}.tar", "b.tar.gz"):
        (text,) = problems(lambda place=place: write(datasets=[{"id": "a", "instance_data_dir": place}]))
        assert (
            "type local reads a folder, and this names tar files → set type and caption_strategy to webdataset" in text
        )


def test_a_variable_that_is_no_option_is_a_problem_like_the_same_key_elsewhere(write: Callable[..., RunConfig]) -> None:
    environ = {"SIMPLETUNER_TRAIN_BATCHSIZE": "2", "SIMPLETUNER_XYZZY": "1"}
    near, far, file = problems(lambda: write({"train_batchsize": 2}, environ=environ))
    assert near.endswith("there is no such option → did you mean SIMPLETUNER_TRAIN_BATCH_SIZE?")
    assert near.startswith("environment: SIMPLETUNER_TRAIN_BATCHSIZE = '2'") and far.endswith("unset SIMPLETUNER_XYZZY")
    assert "did you mean 'train_batch_size'?" in file


def test_a_dataset_default_for_one_run_is_told_where_datasets_have_their_own(write: Callable[..., RunConfig]) -> None:
    """The command line wins over config.json, but not over an entry, whose value is of that dataset."""
    entries = [{"id": name, "instance_data_dir": "pictures", "resolution": 512} for name in ("a", "b")]
    entries[1] |= {"vae_batch_size": 2}
    made = write({}, entries, overrides={"resolution": "64"}, environ={"SIMPLETUNER_VAE_BATCH_SIZE": "1"})
    said = "\n".join(made.notices)
    assert "resolution has no effect: every dataset has its own in config/multidatabackend.json" in said
    assert "vae_batch_size: [b] of config/multidatabackend.json has its own, which counts there" in said
    assert made.datasets.train[0].resolution == 512 and made.datasets.train[0].vae_batch_size == 1
    assert not [n for n in write({"resolution": 64}, entries).notices if "resolution" in n], (
        "in the file it is a default"
    )


def test_a_variable_of_the_original_written_into_the_file_is_told_as_what_it_is(
    write: Callable[..., RunConfig],
) -> None:
    args, capitals = problems(lambda: write({"TRAINER_EXTRA_ARGS": "--user_prompt_library a.json", "LEARNING_RATE": 1}))
    assert "each option in it is a key of its own here" in args and '"user_prompt_library"' in args
    assert capitals.endswith("there is no such option → did you mean 'learning_rate'?")


def test_what_a_model_key_cannot_act_on_is_told(write: Callable[..., RunConfig], pocket: Path) -> None:
    given = {"revision": "main", "gradient_checkpointing": False, "gradient_checkpointing_interval": 2}
    path = {"pretrained_model_name_or_path": str(pocket / "model"), "model_flavour": "sana1.0-600m-512"}
    said = "\n".join(write({**given, **path}).notices)
    for key in ("model_flavour", "revision", "gradient_checkpointing_interval"):
        assert f"{key} has no effect" in said, key
    acting = {"pretrained_model_name_or_path": "someone/sana", "revision": "main", "gradient_checkpointing_interval": 2}
    assert "has no effect" not in "\n".join(write(acting).notices)
    off = {"model_flavour": "sana1.0-600m-512", "gradient_checkpointing": False, "gradient_checkpointing_interval": 1}
    assert "has no effect" not in "\n".join(write({**off, "pretrained_model_name_or_path": None}).notices)


def test_a_satisfied_key_at_the_originals_default_says_nothing(write: Callable[..., RunConfig]) -> None:
    entries = [
        {"id": "a", "instance_data_dir": "pictures", "image_processing_batch_size": 32},
        {"id": "t", "dataset_type": "text_embeds", "write_batch_size": 128, "text_encoder_batch_size": 4},
    ]
    quiet = {"max_workers": 32, "write_batch_size": "128", "adam_beta1": 0.9, "logging_dir": "logs"}
    notices = write({**quiet, "read_batch_size": 7, "compress_disk_cache": True}, entries).notices
    told = {notice.partition(":")[0] for notice in notices} - {"pretrained_model_name_or_path"}
    assert told == {"read_batch_size", "compress_disk_cache", "[t].text_encoder_batch_size"}


def test_prodigy_finds_its_own_rate_where_the_user_is_silent(write: Callable[..., RunConfig]) -> None:
    assert write({"optimizer": "prodigy"}).options.training.peak_rate() == 1.0
    assert write({"optimizer": "prodigy", "learning_rate": 0.5}).options.training.peak_rate() == 0.5
    assert write({}).options.training.peak_rate() == 1e-5


def test_examples_in_the_repository_are_the_packaged_ones() -> None:
    files = sorted((ROOT / "config").glob("*.example"))
    assert len(files) == 4
    for file in files:
        assert file.read_text() == (ROOT / "simpletuner" / "config" / "examples" / file.name).read_text()


def test_a_file_that_is_not_there_names_the_example_that_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the guide says it: the configuration is copied by hand, and nothing else."""
    shutil.copytree(ROOT / "config", tmp_path / "config", ignore=shutil.ignore_patterns("*.json", "*.toml", "*.env"))
    monkeypatch.chdir(tmp_path)
    shutil.copy("config/config.json.example", "config/config.json")
    names = ("user_prompt_library", "multidatabackend", "lycoris_config")
    lokr = {"model_type": "lora", "lora_type": "lycoris", "lycoris_config": "config/lycoris_config.json"}
    texts = sorted(
        problems(lambda: load(environ={}, overrides=lokr)), key=lambda text: [name in text for name in names]
    )
    assert len(texts) == 3
    for name, text in zip(reversed(names), texts, strict=True):
        assert f"→ `cp config/{name}.json.example config/{name}.json`" in text
        shutil.copy(f"config/{name}.json.example", f"config/{name}.json")
    (left,) = problems(lambda: load(environ={}, overrides=lokr))
    assert "datasets/my-pictures" in left, "the pictures are a person's own"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("use_ema", "perhaps", "it must be true or false"),
        ("max_train_steps", "many", "it must be a whole number"),
        ("max_train_steps", 2.5, "it must be a whole number"),
        ("learning_rate", "quick", "it must be a number"),
        ("output_dir", 5, "it must be text in quotes"),
    ],
)
def test_a_wrong_kind_of_value_is_named_in_words(
    write: Callable[..., RunConfig], key: str, value: object, said: str
) -> None:
    (text,) = problems(lambda: write({key: value}))
    assert f"{key} = {value!r}: {said}" in text and "→" not in text


def test_an_unknown_example_to_copy_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(TunerError, match=r"'nonsense' \(examples copy\).*take one of pocket, "):
        copy("nonsense", tmp_path)
