"""What a misspelt word or a missing file is answered with: the remedy must work where it is read."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

from simpletuner.cli.app import app
from simpletuner.config.examples import copy
from simpletuner.config.optimizer_names import PACKAGES, ArgumentsError, OptimizerName, nearest_optimizer, parse
from simpletuner.config.read import load
from simpletuner.errors import ConfigError, Problem, TunerError, UnreachableError
from simpletuner.models import load as models
from simpletuner.models.base import LoadSource
from simpletuner.wording import install


def test_a_misspelt_command_is_answered_with_the_nearest() -> None:
    done = CliRunner().invoke(app, ["trian"])
    assert done.exit_code == 2 and "No such command 'trian'. Did you mean 'train'?" in done.output
    assert "Did you mean" not in CliRunner().invoke(app, ["xyzxyz"]).output
    assert "Usage" in CliRunner().invoke(app, ["--help"]).output


@pytest.mark.parametrize("asked", [lambda: copy("pocke", Path("x")), lambda: load(example="pocke", environ={})])
def test_a_misspelt_example_is_answered_with_the_nearest_alone(asked: object) -> None:
    with pytest.raises(TunerError) as error:
        asked()  # type: ignore[operator]
    text = str(error.value)
    assert "did you mean 'pocket'? `simpletuner examples list`" in text and "sana-style-lora" not in text
    assert "configuration" not in text, "nothing is wrong with any configuration"


def test_files_that_exist_and_a_configuration_that_does_not_are_no_problems_of_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy("pocket", tmp_path / "config")
    with pytest.raises(TunerError, match=r"config.json, .*multidatabackend.json, .* exist already.*--force") as error:
        copy("pocket", tmp_path / "config")
    assert not isinstance(error.value, ConfigError)
    monkeypatch.chdir(_made(tmp_path / "empty"))
    with pytest.raises(TunerError, match=r"there is no configuration here.*examples copy sana") as error:
        load(environ={})
    assert not isinstance(error.value, ConfigError)
    assert str(Problem("a.json", "", "", "it is empty")) == "a.json: it is empty"
    assert str(Problem("a.json", "id", "", "it is empty")) == "a.json: id: it is empty"


def test_where_files_exist_the_command_for_another_folder_is_named_and_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy("sana", Path("config"))
    for folder in ("other", "other-2"):
        with pytest.raises(TunerError) as error:
            copy("sana", Path("config"))
        command = str(error.value).split("`")[1]
        assert command == f"simpletuner examples copy sana config/{folder}"
        assert CliRunner().invoke(app, command.split()[1:]).exit_code == 0
        assert Path("config", folder, "config.json").is_file()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_missing_dataloader_file_is_answered_with_a_command_that_works_anywhere() -> None:
    with pytest.raises(ConfigError, match=r"`simpletuner examples copy sana FOLDER`"):
        load(example="pocket", overrides={"data_backend_config": "nosuch.json"}, environ={})


def test_the_command_that_adds_an_extra_works_where_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Path(__file__).resolve().parents[2]
    monkeypatch.chdir(program)
    assert install("bnb") == "pip install -e './[bnb]'"
    monkeypatch.chdir(tmp_path)
    assert install("bnb") == f"pip install -e '{program}[bnb]'"
    monkeypatch.setattr("simpletuner.wording._PROGRAM", tmp_path)
    assert install("bnb") == "in the folder of this program: pip install './[bnb]'"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("adamw", "'adamw_bf16', 'torch-adamw' or 'optimi-adamw'"),
        ("AdamW", "'adamw_bf16', 'torch-adamw' or 'optimi-adamw'"),
        ("prodgy", "'prodigy'"),
        ("lion", "'optimi-lion' or 'muon'"),
        ("lion8bit", "'bnb-lion8bit'"),  # nothing that needs no package is as near
    ],
)
def test_optimizers_that_need_nothing_are_proposed_first(name: str, meant: str) -> None:
    said = nearest_optimizer(name)
    assert said.startswith(f"did you mean {meant}? It takes ")


def test_all_optimizers_are_listed_and_those_with_packages_apart() -> None:
    listed, _, rest = nearest_optimizer("xxxxxx").partition("; and with a further package ")
    free = {name for name in get_args(OptimizerName) if name.partition("-")[0] not in PACKAGES}
    assert set(listed.removeprefix("use ").split(", ")) == free and rest.startswith("ao-…, bnb-…, came, soap")


def test_all_faults_of_an_optimizers_arguments_are_listed_with_what_to_do() -> None:
    with pytest.raises(ArgumentsError) as error:
        parse("torch-adamw", "lr=3,foo=1,eps=x,word,betas=2,weight_decy=1")
    reasons = dict(error.value.faults)
    assert reasons.pop("'lr' is set by learning_rate") == "take it out, and set learning_rate"
    assert reasons.pop("torch-adamw has no argument 'foo'").startswith("It has: betas, eps")
    assert reasons.pop("torch-adamw has no argument 'weight_decy'").startswith("did you mean 'weight_decay'? It has:")
    assert {reason.partition(" ")[0] for reason in reasons} == {"eps=x", "'word'", "betas"}
    with pytest.raises(ConfigError) as listed:
        load(example="pocket", overrides={"optimizer_config": "lr=3,foo=1"}, environ={})
    assert len(listed.value.problems) == 2


def test_a_model_is_asked_for_by_the_option_that_names_it(pocket: Path) -> None:
    with pytest.raises(models.ModelError, match=r"no folder '\./nosuch' \(--base\)"):
        models.read_index(LoadSource("./nosuch", key="--base"))
    with pytest.raises(models.ModelError, match=r"\(--base\) has no model_index.*subfolder 'model' is one: add /model"):
        models.read_index(LoadSource(str(pocket), key="--base"))


def test_a_hub_that_cannot_be_asked_is_told_from_a_model_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnreachableError, match="HF_HUB_OFFLINE is set"):
        models.read_index(LoadSource("nosuch/model"))
    with pytest.raises(models.ModelError) as error:
        models.read_index(LoadSource("./nosuch"))
    assert not isinstance(error.value, UnreachableError)


def test_a_folder_that_is_not_there_is_told_from_a_repository_also_where_no_hub_can_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(_made(tmp_path / "empty"))
    with pytest.raises(UnreachableError):
        models.read_index(LoadSource("weights/none"))
    _made(tmp_path / "empty" / "weights")
    for path, why in (
        ("weights/none", "'weights' is a folder here, so a path"),
        ("models/none", "'models' owns nothing there"),
    ):
        with pytest.raises(models.ModelError, match=why) as error:
            models.read_index(LoadSource(path))
        assert not isinstance(error.value, UnreachableError), "check says that training would not start"
    for path, kind in (("./none", models.ModelError), ("models/none", models.ModelError), ("a/b", UnreachableError)):
        with pytest.raises(models.ModelError, match=f"{path}.*pretrained_transformer_model_name_or_path") as error:
            models.config(LoadSource("weights", transformer_path=path), "transformer")
        assert type(error.value) is kind, "another transformer is told of by its own path and option"


def test_a_transformer_of_the_same_repository_is_of_the_same_revision() -> None:
    for path, revision in (("a/b", "mine"), ("c/d", None), (None, "mine")):
        source = LoadSource("a/b", revision="mine", transformer_path=path, transformer_subfolder="other")
        assert models._of_part(source, "other").revision == revision
