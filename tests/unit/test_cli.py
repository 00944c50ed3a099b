"""The command line as a person types it."""

import json
from pathlib import Path

import click
import pytest
from conftest import Command

from simpletuner.cli.train import parse_overrides
from simpletuner.config.options import section_of


def test_train_help_lists_every_option(simpletuner: Command) -> None:
    text = simpletuner("train", "--help").stdout
    for key in section_of():
        assert f"--{key}" in text
    for title in ("Model:", "Precision and memory:", "Training:", "EMA:", "Noise:", "Data:"):
        assert title in text


@pytest.mark.parametrize(
    "words",
    [["--train_batch_size", "2"], ["--train-batch-size=2"], ["train_batch_size=2"], ["--train_batch_size=2"]],
)
def test_spellings_of_an_override(words: list[str]) -> None:
    assert parse_overrides(words) == {"train_batch_size": "2"}


def test_flags_stand_alone_or_take_a_value() -> None:
    assert parse_overrides(["--use_ema", "--seed", "3"]) == {"use_ema": "true", "seed": "3"}
    assert parse_overrides(["--use_ema", "false", "seed=3"]) == {"use_ema": "false", "seed": "3"}
    assert parse_overrides(["--use_ema", "seed=3"]) == {"use_ema": "true", "seed": "3"}


def test_a_configuration_file_without_its_option_is_told_the_option() -> None:
    with pytest.raises(
        click.UsageError, match=r"'config/fox\.json' belongs to no option; write --config config/fox\.json"
    ):
        parse_overrides(["config/fox.json"])
    with pytest.raises(click.UsageError, match="'fox' belongs to no option; write --key value or key=value"):
        parse_overrides(["fox"])


def test_mistakes_are_sentences(simpletuner: Command) -> None:
    done = simpletuner("train", "--example=pocket", "--train_batchsize", "3", "--seed=x", check=False)
    assert done.returncode == 1 and "train_batch_size" in done.stderr and "seed" in done.stderr
    done = simpletuner("train", "--example=pocket", "--push_to_hub", "--train_batch_size=0", check=False)
    assert done.returncode == 1 and "push_to_hub" in done.stderr and "train_batch_size" in done.stderr
    assert "Traceback" not in done.stderr and "command line" in done.stderr
    done = simpletuner("train", "--example=nothing", check=False)
    assert "pocket, pocket-lora" in done.stderr and "sana-style-lora" in done.stderr


def test_examples_can_be_listed_copied_and_are_not_overwritten(simpletuner: Command, tmp_path: Path) -> None:
    assert "pocket" in simpletuner("examples", "list").stdout
    simpletuner("examples", "copy", "sana")
    written = json.loads((tmp_path / "config" / "config.json").read_text())
    assert written["model_type"] == "full" and written["use_ema"] is True and "push_to_hub" not in written
    elsewhere = simpletuner("examples", "copy", "pocket", "config/mine").stdout
    assert (
        "`simpletuner train --config config/mine`" in elsewhere
        and "output_dir is output/config/mine-pocket," in elsewhere
    )
    again = simpletuner("examples", "copy", "pocket", check=False)
    assert again.returncode == 1 and "--force" in again.stderr
    simpletuner("examples", "copy", "pocket", "--force")
    config = (tmp_path / "config" / "config.json").read_text()
    assert "{example:pocket}/model" in config
    # Editing the copies must act: the copied configuration names them, not the packaged ones.
    assert '"config/multidatabackend.json"' in config and '"config/user_prompt_library.json"' in config


def test_the_sana_example_runs_with_only_its_paths_replaced(
    simpletuner: Command, tmp_path: Path, tiny_sana: Path, pictures: object
) -> None:
    """Steps and picture size come from the command line, so that a CPU can do it; the files change in paths alone."""
    simpletuner("examples", "copy", "sana")
    folder = pictures("datasets/my-pictures")  # type: ignore[operator]
    assert folder.is_dir()
    config = json.loads((tmp_path / "config" / "config.json").read_text())
    config["pretrained_model_name_or_path"] = str(tiny_sana)
    config["output_dir"] = str(tmp_path / "out")
    (tmp_path / "config" / "config.json").write_text(json.dumps(config))
    small = ("--max_train_steps=2", "--validation_resolution=64x64", "--validation_num_inference_steps=2")
    datasets = json.loads((tmp_path / "config" / "multidatabackend.json").read_text())
    datasets[0]["resolution"] = 64
    (tmp_path / "config" / "multidatabackend.json").write_text(json.dumps(datasets))
    done = simpletuner("train", *small)
    assert "Done: 2 steps" in done.stdout
    assert (tmp_path / "out" / "validation_images" / "step_2_outdoors_0_64x64_ema.png").is_file()


def test_without_a_configuration_it_says_so_and_runs_the_embedded_default(simpletuner: Command, tmp_path: Path) -> None:
    done = simpletuner("train", "--max_train_steps=1", "--validation_num_inference_steps=1")
    assert "no config/config.json here" in done.stdout and "pocket" in done.stdout
    assert "held-out loss" in done.stdout
    assert (tmp_path / "output" / "pocket" / "before_after.png").is_file()


def test_help_lists_the_words_of_options_that_may_be_left_out() -> None:
    from simpletuner.cli.train import _choices
    from simpletuner.config.noise_options import FlowOptions, LossOptions

    assert _choices(FlowOptions, "flow_density") == " (logit_normal, uniform, beta, mode, cosmap)"
    assert _choices(LossOptions, "loss_type") == " (l2, huber, smooth_l1)"
    assert _choices(FlowOptions, "flow_schedule_shift") == _choices(FlowOptions, "flow_custom_timesteps") == ""
