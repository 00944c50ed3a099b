"""Corners of the configuration room: wrong types, folders, selectors, and that one problem never hides another."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpletuner.config.read import RunConfig, load
from simpletuner.errors import ConfigError

Load = Callable[..., RunConfig]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "config").mkdir()
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Load:
    """Write a configuration with one dataset, and load it with nothing from outside."""

    def make(
        options: dict[str, Any] | None = None, dataset: dict[str, Any] | None = None, **load_with: Any
    ) -> RunConfig:
        entry = {"id": "a", "instance_data_dir": "pictures", **(dataset or {})}
        (folder / "config" / "config.json").write_text(json.dumps({"max_train_steps": 5, **(options or {})}))
        (folder / "config" / "multidatabackend.json").write_text(json.dumps([entry]))
        return load(**{"environ": {}, **load_with})

    return make


def problems(make: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        make()
    return [str(p) for p in caught.value.problems]


WRONG = [
    ("sana_complex_human_instruction", "nowhere.txt"), ("sana_complex_human_instruction", '[{"a": 1}]'),
    ("validation_resolution", "inf"), ("validation_resolution", [[0, -5]]), ("validation_resolution", "wide"),
    ("lr_warmup_steps", "abc"), ("train_batch_size", True), ("learning_rate", True), ("output_dir", True),
    ("validation_prompt", True), ("learning_rate", float("inf")), ("learning_rate", float("nan")),
    ("optimizer_config", "beta1=2,beta2=0.9"), ("optimizer_config", "weight_decay=nan"), ("seed", {"a": 1}),
    ("optimizer", ["optimi-adamw"]), ("use_ema", "maybe"), ("ema_decay", 1),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_value_is_one_problem_with_its_file_and_key(write: Load, key: str, value: Any) -> None:
    (text,) = problems(lambda: write({key: value, "lr_scheduler": "constant"}))
    assert text.startswith(f"config/config.json: {key} = ")


def test_a_wrong_option_hides_neither_datasets_nor_rules(write: Load) -> None:
    options = {"train_batch_size": 0, "flow_schedule_shift": 1, "flow_schedule_auto_shift": True}
    texts = problems(lambda: write(options, {"instance_data_dir": "nowhere", "repeats": -1}))
    found = "\n".join(texts)
    assert all(key in found for key in ("train_batch_size", "flow_schedule_shift", "[a].repeats"))


def test_a_rule_does_not_repeat_what_is_wrong_already(write: Load) -> None:
    (text,) = problems(lambda: write({"max_train_steps": "many"}))
    assert "max_train_steps = 'many'" in text
    (text,) = problems(lambda: write({"max_train_steps": 0, "num_train_epochs": "two"}))
    assert "num_train_epochs = 'two'" in text


ALONE = [
    {"flow_use_uniform_schedule": True, "flow_sigmoid_scale": 2.0}, {"lr_scale_sqrt": True},
    {"pretrained_vae_model_name_or_path": "someone/vae"},
    {"train_batch_size": 2, "--train-batch-size": 3},
]  # fmt: skip


@pytest.mark.parametrize("options", ALONE)
def test_nothing_is_accepted_and_ignored(write: Load, options: dict[str, Any]) -> None:
    assert len(problems(lambda: write(options))) == 1


def test_an_epoch_interval_names_the_option_to_use(write: Load) -> None:
    (text,) = problems(lambda: write({"checkpoint_epoch_interval": 1}))
    assert "use checkpoint_step_interval" in text


def test_an_empty_folder_is_not_the_working_directory(write: Load) -> None:
    assert write(dataset={"cache_dir_vae": ""}).datasets.train[0].cache_dir_vae == Path("output/models/cache/vae/a")
    (text,) = problems(lambda: write(dataset={"instance_data_dir": ""}))
    assert "missing" in text


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "a\\b"])
def test_an_id_cannot_leave_the_cache_folder(write: Load, name: str) -> None:
    (text,) = problems(lambda: write(dataset={"id": name}))
    assert "must not be a path" in text


def test_one_problem_for_one_field(write: Load) -> None:
    assert len(problems(lambda: write(dataset={"instance_prompt": 5}))) == 1
    (text,) = problems(lambda: write(dataset={"target_downsample_size": 512}))
    assert "maximum_image_size" in text


def test_text_one_is_the_number_one(write: Load) -> None:
    assert write(overrides={"num_processes": "1", "snr_gamma": "0.0"}).options.training.max_train_steps == 5
    assert write(overrides={"num_processes": "2"}).options.processes.num_processes == 2


def test_old_names_work_in_the_environment_and_unknown_ones_are_told(write: Load) -> None:
    run = write(environ={"SIMPLETUNER_VALIDATION_STEPS": "7"})
    assert run.options.validation.validation_step_interval == 7
    (text,) = problems(lambda: write(environ={"SIMPLETUNER_TRAIN_BATCHSIZE": "2"}))
    assert "SIMPLETUNER_TRAIN_BATCHSIZE" in text and "SIMPLETUNER_TRAIN_BATCH_SIZE" in text
    assert any("SIMPLETUNER_CONFIG_BACKEND" in n for n in write(environ={"SIMPLETUNER_CONFIG_BACKEND": "toml"}).notices)


def test_what_the_original_would_have_read_is_told(write: Load, folder: Path) -> None:
    variables = {
        **{"TRAINER_EXTRA_ARGS": "--seed=1", "ACCELERATE_EXTRA_ARGS": "--x", "TRAINING_DYNAMO_BACKEND": "inductor"},
        **{"CONFIG_BACKEND": "env", "MIXED_PRECISION": "fp16", "ENV": "production"},
    }
    quiet = write().notices
    told = [notice for notice in write(environ=variables).notices if notice not in quiet]
    assert [notice.split()[0] for notice in told] == list(variables)
    off = {
        **dict.fromkeys(variables, ""),
        "TRAINING_DYNAMO_BACKEND": "no",
        "CONFIG_BACKEND": "json",
        "ENV": "/root/.shrc",
    }
    assert write(environ={**off, "MIXED_PRECISION": "bf16"}).notices == quiet
    launcher = folder / "hf" / "accelerate" / "default_config.yaml"
    launcher.parent.mkdir(parents=True)
    home = {"HF_HOME": str(folder / "hf")}
    assert write(environ=home).notices == quiet
    launcher.write_text("num_processes: 4\n")
    (told_of,) = [notice for notice in write(environ=home).notices if notice not in quiet]
    assert told_of.startswith(f"{launcher}: it is not read") and "num_processes" in told_of
    assert write(environ=home, overrides={"num_processes": "1"}).notices == quiet
    (folder / "config" / "config.env").write_text("MODEL_TYPE=full\n")
    assert any("config.env: it is not read, as config.json is" in notice for notice in write().notices)


def test_a_key_that_is_there_twice_is_a_problem_unless_both_say_the_same(write: Load, folder: Path) -> None:
    write()
    file = folder / "config" / "config.json"
    file.write_text('{"max_train_steps": 5, "model_type": "full",\n"seed": 1,\n"seed": 2, "sead": 3}')
    entries = json.loads((folder / "config" / "multidatabackend.json").read_text())
    whole = json.dumps(entries)
    (folder / "config" / "multidatabackend.json").write_text(whole.replace("{", '{"repeats": 1, "repeats": 2, ', 1))
    twice, unknown, dataset = sorted(
        problems(lambda: load(environ={})), key=lambda text: "sead" in text or 2 * ("[" in text)
    )
    assert "config.json: seed: it is given twice with different values, in lines 2 and 3 → keep one of them" in twice
    assert "sead" in unknown and f"[{entries[0]['id']}].repeats: it is given twice" in dataset
    (folder / "config" / "multidatabackend.json").write_text(whole)
    file.write_text('{"max_train_steps": 5, "use_ema": 1, "use_ema": true}')
    assert any("use_ema: it is given twice" in text for text in problems(lambda: load(environ={})))
    file.write_text('{"max_train_steps": 5, "seed": 2, "seed": 2}')
    assert load(environ={}).options.training.seed == 2
    file.write_text('{"max_train_steps": 5, "webhook_config": {"auth_token": "s3cret", "auth_token": "other"}}')
    assert not any("s3cret" in text or "other" in text for text in problems(lambda: load(environ={})))


def test_the_command_line_chooses_the_configuration(write: Load, folder: Path) -> None:
    write()
    other = folder / "config" / "other"
    other.mkdir()
    (other / "config.json").write_text('{"max_train_steps": 9}')
    (other / "multidatabackend.json").write_text((folder / "config" / "multidatabackend.json").read_text())
    environ = {"CONFIG_PATH": "config/config.json"}
    assert load(environ=environ).options.training.max_train_steps == 5
    assert load(env="other", environ=environ).options.training.max_train_steps == 9
    (text,) = problems(lambda: load(env="other", example="pocket", environ={}))
    assert "--env other" in text and "--example pocket" in text


def test_a_shell_file_is_refused_by_name_too(folder: Path) -> None:
    (folder / "config" / "config.env").write_text("MODEL_TYPE=full\n")
    for config in ("config/config.env", "config", None):
        (text,) = problems(lambda config=config: load(config, environ={}))  # type: ignore[misc]
        assert "config.json" in text and "shell-style" in text


def test_examples_in_values(write: Load) -> None:
    pocket = load(example="pocket", environ={})
    assert (Path(pocket.options.model.pretrained_model_name_or_path) / "model_index.json").is_file()
    assert pocket.datasets.eval and pocket.datasets.train[0].timestep_sampling_offset == 0.3
    assert json.loads(json.dumps(pocket.raw))["train_batch_size"] == 16
    texts = problems(lambda: write({"output_dir": "{example:nothing}/x", "seed": "x"}))
    assert len(texts) == 2 and "take one of pocket, " in texts[0] and " sana" in texts[0]


def test_a_nickname_cannot_be_taken_twice(write: Load, folder: Path) -> None:
    (folder / "library.json").write_text('{"validation": "q", "other": "r"}')
    assert len(write({"user_prompt_library": "library.json"}).prompts) == 2
    (text,) = problems(lambda: write({"user_prompt_library": "library.json", "validation_prompt": "p"}))
    assert "library.json: validation = 'q'" in text


def test_two_datasets_may_share_folders(folder: Path) -> None:
    """Latents are kept by content, so that a shared cache folder is safe (the original refuses it)."""
    entries = [{"id": i, "instance_data_dir": "pictures", "cache_dir_vae": "cache"} for i in ("a", "b")]
    (folder / "config" / "config.json").write_text('{"max_train_steps": 1}')
    (folder / "config" / "multidatabackend.json").write_text(json.dumps(entries))
    assert len(load(environ={}).datasets.train) == 2


def test_old_schedule_names_are_told(write: Load) -> None:
    run = write({"lr_scheduler": "cosine_with_warmup"})
    assert run.options.training.lr_scheduler == "cosine" and any("cosine_with_warmup" in n for n in run.notices)


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ('{"webhook_config": "' + "s" * 400 + '", "seed": 7,}', 's", "seed": 7,}'),
        ("\0" * 4000, "\\x00"),
        ('{"seed": 7,\n "max_train_steps": 5,\n}', "'}'"),
    ],
)
def test_of_a_long_line_with_an_error_only_what_is_around_it_is_shown(folder: Path, content: str, shown: str) -> None:
    (folder / "config" / "config.json").write_text(content)
    (found,) = problems(lambda: load(environ={}))
    assert shown in found and len(found) < 700 and "s" * 100 not in found


@pytest.mark.parametrize("content", ['{"seed": ' + "9" * 5000 + "}", "[" * 100_000])
def test_what_no_reader_takes_is_one_problem(folder: Path, content: str) -> None:
    (folder / "config" / "config.json").write_text(content)
    assert "it is no configuration" in problems(lambda: load(environ={}))[0]
