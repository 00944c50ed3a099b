"""Options of adapters: each reaches its plain value, impossible ones are refused before anything is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from simpletuner.config import lycoris
from simpletuner.config.options import AdapterOptions
from simpletuner.config.read import RunConfig, load
from simpletuner.errors import ConfigError
from simpletuner.models.adapters import LoraSettings, LycorisSettings
from simpletuner.training import translate_adapter, translate_data, translate_reporting
from simpletuner.training.precision import choose_for_adapter

LOKR = {
    "algo": "lokr",
    "multiplier": 1.0,
    "linear_dim": 10000,
    "linear_alpha": 0.5,
    "factor": 16,
    "apply_preset": {
        "target_module": ["Attention", "FeedForward"],
        "module_algo_map": {"Attention": {"factor": 16}, "FeedForward": {"factor": 8}},
    },
}
Read = Callable[..., RunConfig]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    monkeypatch.chdir(tmp_path)
    for folder in ("pictures", "config"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "a.png")

    def make(options: dict[str, Any], fields: dict[str, Any] | None = None) -> RunConfig:
        content = {"max_train_steps": 5, "model_type": "lora", **options}
        entries = [
            {"id": "a", "instance_data_dir": "pictures", **(fields or {})},
            {"id": "t", "dataset_type": "text_embeds", "default": True},
        ]
        (tmp_path / "config" / "config.json").write_text(json.dumps(content))
        (tmp_path / "config" / "multidatabackend.json").write_text(json.dumps(entries))
        return load(environ={})

    return make


def refused(make: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        make()
    return str(caught.value)


STANDARD = [
    ({"lora_rank": 8}, "rank", 8),
    ({"lora_rank": 8}, "alpha", 8.0),
    ({"lora_alpha": 0.5}, "alpha", 0.5),
    ({"lora_dropout": 0.2}, "dropout", 0.2),
    ({"use_dora": True}, "dora", True),
    ({"use_rslora": True}, "rslora", True),
    ({"lora_init_type": "pissa"}, "init", "pissa"),
    ({"peft_lora_target_modules": ["all"]}, "targets", ("all",)),
    ({"peft_lora_target_modules": '["to_q", "to_k"]'}, "targets", ("to_q", "to_k")),
    ({"peft_lora_target_modules": "to_q, conv_point"}, "targets", ("to_q", "conv_point")),
    ({"peft_lora_target_modules": "names.json"}, "targets", ("to_v",)),
]


@pytest.mark.parametrize(("given", "name", "expected"), STANDARD, ids=str)
def test_an_option_of_standard_lora_reaches_its_value(
    read: Read, given: dict[str, Any], name: str, expected: object
) -> None:
    Path("names.json").write_text('["to_v"]')
    assert getattr(LoraSettings(), name) != expected, "this row could not fail"
    assert getattr(translate_adapter.settings(read(given).options), name) == expected


def test_lora_dropout_is_off_and_nothing_of_it_acts_on_full_training(read: Read) -> None:
    assert translate_adapter.settings(read({}).options) == LoraSettings()
    config = read({"model_type": "full", "lora_rank": 4}, {"is_regularisation_data": True})
    assert translate_adapter.settings(config.options) is None and translate_data.regularisation(config) == []
    assert any("lora_rank: it acts with model_type lora only" in n for n in config.notices)
    assert any("acts as ordinary data" in n for n in config.notices)


def test_a_regularisation_set_is_one_for_adapters(read: Read) -> None:
    for spelling in ("is_regularisation_data", "is_regularization_data"):
        config = read({}, {spelling: True})
        assert translate_data.regularisation(config) == ["a"]
        assert not any("ordinary data" in n for n in config.notices)
    assert translate_data.regularisation(read({})) == []


@pytest.mark.parametrize(
    "given", [LOKR, json.dumps(LOKR), "settings.json", None], ids=["object", "text", "file", "beside"]
)
def test_lycoris_config_is_an_object_or_a_file(read: Read, given: object) -> None:
    for file in ("settings.json", "config/lycoris_config.json"):
        Path(file).write_text(json.dumps(LOKR))
    config = read({"lora_type": "lycoris", "init_lokr_norm": 1e-3, **({"lycoris_config": given} if given else {})})
    settings = translate_adapter.settings(config.options)
    assert isinstance(settings, LycorisSettings) and settings.lokr_norm == 1e-3
    assert settings.config == LOKR, "nothing is rounded or lost"
    assert config.raw["lycoris_config"] == LOKR


WRONG = [
    ({"algo": "lokrr"}, "algo", "lokr"),
    ({"algo": "full"}, "algo", "model_type full"),
    ({"algo": "tlora"}, "algo", "not yet"),
    ({"linear_dim": 2.5}, "linear_dim", "whole number"),
    ({"linear_dim": True}, "linear_dim", "whole number"),
    ({"full_matrix": "yes"}, "full_matrix", "true or false"),
    ({"fator": 4}, "fator", "'factor'"),
    ({"rank_dropout": 1.0}, "rank_dropout", "below 1"),
    ({"train_norm": True}, "train_norm", "norms"),
    ({"apply_preset": {}}, "apply_preset", "names no layers"),
    ({"apply_preset": {"target_modules": ["Attention"]}}, "target_modules", "'target_module'"),
    ({"apply_preset": {"target_module": "Attention"}}, "target_module", "a list"),
    ({"apply_preset": {"target_name": ["to_(q"]}}, "target_name", "regular expression"),
    ({"apply_preset": {"module_algo_map": {"Attention": {"linear_dim": 4}}}}, "linear_dim", "'dim'"),
    ({"apply_preset": {"module_algo_map": {"Attention": 4}}}, "module_algo_map", "object of objects"),
]


@pytest.mark.parametrize(("change", "key", "said"), WRONG, ids=str)
def test_what_is_wrong_in_lycoris_config_is_told(change: dict[str, Any], key: str, said: str) -> None:
    assert not list(lycoris.problems(LOKR))
    texts = [f"{where} {reason} {remedy}" for where, _, reason, remedy in lycoris.problems({**LOKR, **change})]
    assert any(key in text and said in text for text in texts), texts


def test_missing_keys_of_lycoris_config() -> None:
    missing = {where for where, *_ in lycoris.problems({})}
    assert missing == {"algo", "multiplier", "linear_alpha", "linear_dim", "apply_preset"}
    whole = {k: v for k, v in LOKR.items() if k != "linear_dim"}
    assert not list(lycoris.problems({**whole, "full_matrix": True}))
    assert not list(lycoris.problems(json.loads(lycoris.EXAMPLE)))


def test_keys_of_lycoris_config_that_do_nothing_are_told(read: Read) -> None:
    notices = read({"lora_type": "lycoris", "lora_rank": 4, "lycoris_config": {**LOKR, "dropout": 0.1}}).notices
    assert any("dropout: lokr drops nothing" in n for n in notices)
    assert any("lora_rank: lycoris_config decides" in n for n in notices)
    usual = read({"lora_type": "lycoris", "lora_rank": 16, "lora_alpha": 16, "lycoris_config": LOKR}).notices
    for key in ("lora_rank", "lora_alpha"):
        assert sum(f"{key}: lycoris_config decides" in n for n in usual) == 1, "of the pair both, also at the default"


IMPOSSIBLE = [
    ({"use_dora": True, "lora_init_type": "pissa"}, "lora_init_type"),
    ({"lora_init_type": "loftq"}, "quantised base"),
    ({"peft_lora_target_modules": ["conv_depth"]}, "depthwise"),
    ({"peft_lora_target_modules": []}, "names no layer"),
    ({"lora_type": "lycoris"}, "there is no such file"),
    ({"lora_type": "lycoris", "lycoris_config": "{oops"}, "lycoris_config"),
    ({"init_lora": "nowhere.safetensors"}, "init_lora"),
    ({"model_type": "full", "init_lora": "pictures"}, "full training would ignore it"),
    ({"train_text_encoder": True}, "text encoder is frozen"),
    ({"lora_dropout": 1.0}, "lora_dropout"),
    ({"lora_rank": 0}, "lora_rank"),
]


@pytest.mark.parametrize(("given", "said"), IMPOSSIBLE, ids=str)
def test_impossible_combinations_are_refused(read: Read, given: dict[str, Any], said: str) -> None:
    assert said in refused(lambda: read(given))


def test_every_option_of_adapters_is_told_without_one(read: Read) -> None:
    given = {"lora_alpha": 4, "lora_format": "comfyui", "validation_lycoris_strength": 0.5, "use_rslora": True}
    notices = "\n".join(read({"model_type": "full", **given}).notices)
    assert all(f"{key}: it acts with model_type lora only" in notices for key in given)
    assert set(given) <= set(AdapterOptions.model_fields)
    defaults = {"lora_type": "standard", "lora_rank": 16, "lora_format": "diffusers", "use_dora": False}
    assert not any("lora" in n for n in read({"model_type": "full", **defaults}).notices)


def test_the_adapter_is_float32_whatever_the_base() -> None:
    kinds = {name: choose_for_adapter(name) for name in ("no", "bf16", "fp16")}  # type: ignore[arg-type]
    assert {p.weights for p in kinds.values()} == {torch.float32}
    assert [kinds[name].base for name in kinds] == [torch.float32, torch.bfloat16, torch.float32]
    assert [kinds[name].autocast for name in kinds] == [None, torch.bfloat16, torch.float16]
    assert kinds["fp16"].scale_gradients and "frozen bfloat16 model" in kinds["bf16"].describe()


def test_the_page_shows_configurations_that_are_right(read: Read) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "adapters.md"
    blocks = [part.split("```")[0] for part in page.read_text(encoding="utf-8").split("```json\n")[1:]]
    standard, settings = (json.loads(block) for block in blocks)
    found = translate_adapter.settings(read(standard).options)
    assert isinstance(found, LoraSettings) and found.targets == ("all",)
    assert not list(lycoris.problems(settings)) and not lycoris.notices(settings)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"model_type": "full"}, "full rank"),
        ({}, "LoRA"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_type": "lycoris", "lycoris_config": LOKR}, "LoKr"),
    ],
)
def test_a_run_is_called_by_its_name_and_what_it_trains(read: Read, options: dict[str, Any], kind: str) -> None:
    named = read({**options, "tracker_run_name": "cats"}).options
    assert translate_reporting.title(named).startswith(f"cats ({kind} of ")
    unnamed = read({**options, "output_dir": "outputs/my-cats"}).options
    assert translate_reporting.title(unnamed).startswith("my-cats (")
