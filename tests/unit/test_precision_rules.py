"""Quantisation: what is refused before anything is loaded, what has no effect, and what the options become."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from simpletuner.config.catalogue import OTHER_VALUES
from simpletuner.config.datasets import Datasets
from simpletuner.config.optimizer_names import PACKAGES
from simpletuner.config.options import AdapterOptions, ModelOptions, Options, PrecisionOptions, section_of
from simpletuner.config.precision_rules import precision_problems, precision_without_effect
from simpletuner.config.read import RunConfig
from simpletuner.errors import ConfigError
from simpletuner.models.quantize import EXTRAS, PLANS
from simpletuner.training import translate_precision
from simpletuner.training.precision import choose
from simpletuner.wording import install

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def options(model_type: str = "lora", **given: Any) -> Options:
    """Options as they would be; ``model_type`` is not checked here."""
    model = ModelOptions.model_construct(**{**ModelOptions().model_dump(), "model_type": model_type})
    return Options.model_construct(**{**dict(Options()), "model": model, "precision": PrecisionOptions(**given)})


def config_of(asked: Options, where: dict[str, str]) -> RunConfig:
    """A configuration with these options and nothing else."""
    return RunConfig(asked, Datasets((), (), Path("text")), (), (), "config.json", where=where)


def test_a_package_that_is_not_there_is_a_problem_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simpletuner.config.precision_rules.find_spec", lambda name: None)
    asked = options(base_model_precision="nf4-bnb", text_encoder_1_precision="int8-torchao")
    first, second = precision_problems(asked)
    assert first == (
        "base_model_precision",
        "nf4-bnb",
        "it needs bitsandbytes, which is not installed",
        install("bnb"),
    )
    assert second[0] == "text_encoder_1_precision" and second[3] == install("torchao")
    assert not list(precision_problems(options()))


def test_every_quantiser_names_the_package_that_its_plan_needs() -> None:
    for name, plan in PLANS.items():
        assert PACKAGES[name.rpartition("-")[2]] == (plan.package, EXTRAS[plan.package])


def test_full_rank_training_over_a_quantised_base_is_refused() -> None:
    ((key, value, reason, remedy),) = precision_problems(options("full", base_model_precision="int8-torchao"))
    assert (key, value) == ("base_model_precision", "int8-torchao")
    assert "changes the very weights" in reason and "model_type to lora" in remedy
    assert not list(precision_problems(options("full", text_encoder_1_precision="nf4-bnb")))
    assert not list(precision_problems(options("lora", base_model_precision="nf4-bnb")))


def test_a_package_is_not_asked_for_where_it_would_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simpletuner.config.precision_rules.find_spec", lambda name: None)
    found = list(
        precision_problems(options("full", base_model_precision="nf4-bnb", text_encoder_1_precision="nf4-bnb"))
    )
    assert [(key, "weights" in reason, remedy == install("bnb")) for key, _, reason, remedy in found] == [
        ("text_encoder_1_precision", False, True),
        ("base_model_precision", True, False),
    ]


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"algo": "lokr", "dora_wd": True}, "lycoris_config.dora_wd"),
        ({"algo": "lokr", "bypass_mode": False}, "lycoris_config.bypass_mode"),
        ({"algo": "boft"}, "lycoris_config.algo"),
        ({"algo": "lokr", "apply_preset": {"module_algo_map": {"A": {"algo": "diag-oft"}}}}, "lycoris_config.algo"),
        (
            {"algo": "lokr", "apply_preset": {"name_algo_map": {"x": {"weight_decompose": True}}}},
            "lycoris_config.weight_decompose",
        ),
        ({"algo": "lokr", "dora_wd": False, "bypass_mode": True, "factor": 4}, None),
    ],
)
def test_what_lycoris_cannot_do_over_a_quantised_base(config: dict[str, Any], key: str | None) -> None:
    adapter = AdapterOptions.model_construct(
        **{**dict(AdapterOptions()), "lora_type": "lycoris", "lycoris_config": config}
    )
    asked = options(base_model_precision="nf4-bnb").model_copy(update={"adapter": adapter})
    assert [row[0] for row in precision_problems(asked)] == ([key] if key else [])
    assert not list(precision_problems(options().model_copy(update={"adapter": adapter})))


@pytest.mark.parametrize(
    ("value", "instead"),
    [("int8-quanto", "int8-torchao"), ("int4-quanto", "nf4-bnb"), ("int2-quanto", "nf4-bnb"),
     ("fp8-quanto", "fp8wo-torchao"), ("int4-torchao", "mslk"), ("int8-sdnq", "int8-torchao"),
     ("uint4-sdnq", "nf4-bnb"), ("fp8-native", "fp8-torchao"), ("fp8-transformerengine", "fp8-torchao")],
)  # fmt: skip
def test_other_quantisers_name_the_nearest(value: str, instead: str) -> None:
    for key in ("base_model_precision", "text_encoder_1_precision"):
        assert instead in OTHER_VALUES[key][value]


def test_every_plan_is_an_option() -> None:
    assert {"no_change", *PLANS} == set(
        PrecisionOptions.model_json_schema()["properties"]["base_model_precision"]["enum"]
    )


def test_bf16_layers_beside_float32_products_are_refused() -> None:
    asked = {"base_model_precision": "nf4-bnb", "base_model_default_dtype": "bf16"}
    ((key, *_),) = precision_problems(options(**asked, mixed_precision="no"))
    assert key == "base_model_default_dtype"
    assert not list(precision_problems(options(**asked, mixed_precision="bf16")))
    assert not list(precision_problems(options(base_model_default_dtype="bf16", mixed_precision="no")))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"quantize_via": "cpu"}, ["quantize_via: neither"]),
        ({"base_model_default_dtype": "fp32"}, ["base_model_default_dtype: it acts only"]),
        ({"quantize_via": "cpu", "base_model_precision": "fp8-torchao"}, ["quantize_via cpu: fp8-torchao works"]),
        ({"quantize_via": "pipeline", "text_encoder_1_precision": "nf4-bnb"}, ["quantize_via pipeline: layers"]),
        ({"quantize_via": "cpu", "base_model_precision": "nf4-bnb", "base_model_default_dtype": "fp32"}, []),
        ({}, []),
    ],
)
def test_options_without_effect_are_told(given: dict[str, str], said: list[str]) -> None:
    lines = precision_without_effect(options(**given), dict.fromkeys(given, "config.json"))
    assert len(lines) == len(said) and all(line.startswith(s) for line, s in zip(lines, said, strict=True))


@pytest.mark.parametrize(
    ("mixed", "compute"), [("no", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_products_are_in_the_dtype_of_the_run(mixed: Any, compute: torch.dtype) -> None:
    given = options(base_model_precision="nf4-bnb", quantize_via="cpu")
    settings = translate_precision.base_quantisation(given, choose(mixed, low_precision_safe=False), GPU)
    assert settings and (settings.name, settings.device, settings.compute) == ("nf4-bnb", CPU, compute)
    assert translate_precision.text_quantisation(given, choose(mixed, low_precision_safe=False), GPU) is None


def test_fp8_products_are_quantised_where_they_work() -> None:
    given = options(base_model_precision="fp8-torchao", quantize_via="cpu")
    settings = translate_precision.base_quantisation(given, choose("bf16", low_precision_safe=False), GPU)
    assert settings and settings.device == GPU


def test_the_page_names_every_kind_and_its_setting_can_be_asked_for() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "low-memory.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in PLANS)
    blocks = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    assert [json.loads(block)["model_type"] for block in blocks] == ["lora", "full"]
    for block in blocks:
        given = json.loads(block)
        assert given.keys() <= section_of().keys()
        precision = {key: value for key, value in given.items() if key in PrecisionOptions.model_fields}
        assert len(precision) >= 3 and not list(precision_problems(options(given["model_type"], **precision)))
        assert not precision_without_effect(options(given["model_type"], **precision), given)


def test_what_is_not_quantised_has_the_default_dtype() -> None:
    assert translate_precision.default_dtype(options(base_model_default_dtype="fp32")) is None
    assert translate_precision.default_dtype(options(base_model_precision="nf4-bnb")) is None
    given = options(base_model_precision="nf4-bnb", base_model_default_dtype="bf16")
    assert translate_precision.default_dtype(given) == torch.bfloat16


def test_what_this_machine_cannot_do_is_refused_with_both_keys() -> None:
    asked = options(base_model_precision="fp8-torchao", text_encoder_1_precision="fp8-torchao")
    with pytest.raises(ConfigError) as caught:
        translate_precision.check_quantisation(config_of(asked, {"base_model_precision": "environment"}), CPU)
    assert [p.file for p in caught.value.problems] == ["environment", "config.json"]
    assert [p.key for p in caught.value.problems] == ["base_model_precision", "text_encoder_1_precision"]
    assert all("8.9" in p.reason and "use int8-torchao" in p.remedy for p in caught.value.problems)
