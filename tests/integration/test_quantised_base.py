"""Adapters over a quantised base through the real program: told, trained, resumed to the bit, loaded over the plain base."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from simpletuner.config.read import load
from simpletuner.errors import ConfigError
from simpletuner.models.adapters import WEIGHTS
from simpletuner.reporting.progress import Reporter

LOKR: dict[str, Any] = {
    "lora_type": "lycoris",
    "lycoris_config": {
        **{"algo": "lokr", "multiplier": 1.0, "linear_dim": 4, "linear_alpha": 2.0, "factor": 4},
        "apply_preset": {"target_module": ["Attention", "GLUMBConv"]},
    },
}
ROTATING = {"lora_type": "lycoris", "lycoris_config": {**LOKR["lycoris_config"], "algo": "diag-oft"}}
KINDS: dict[str, dict[str, Any]] = {
    "lora over nf4": {
        **{"base_model_precision": "nf4-bnb", "quantize_via": "cpu", "lora_rank": 4, "gradient_checkpointing": True},
        **{"peft_lora_target_modules": ["all"], "mixed_precision": "bf16", "base_model_default_dtype": "fp32"},
    },
    "lokr over nf4": {**LOKR, "base_model_precision": "nf4-bnb", "text_encoder_1_precision": "int8-torchao"},
    "lokr over int8": {**LOKR, "base_model_precision": "int8-torchao", "mixed_precision": "bf16"},
}


@pytest.fixture
def train(pocket_run: Callable[..., Path]) -> Callable[..., str]:
    """Train in this process; returns what was said."""

    def run(**options: Any) -> str:
        from simpletuner.training.run import train as real

        said = StringIO()
        config = load(str(pocket_run(**{"model_type": "lora", **options})), environ={})
        real(config, Reporter(Console(file=said, width=250)))
        return said.getvalue()

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_told_and_resumes_to_the_same_bits(train: Callable[..., str], kind: str, tmp_path: Path) -> None:
    said = train(**KINDS[kind], max_train_steps=4, output_dir=str(tmp_path / "whole"))
    (line,) = [line for line in said.splitlines() if line.startswith("Quantised base model")]
    assert str(KINDS[kind]["base_model_precision"]) in line and "its output moved by" in line
    frozen = "bfloat16" if kind == "lokr over int8" else "float32"
    assert f"over a frozen {frozen} model" in said
    assert ("Quantised text encoder" in said) == ("text_encoder_1_precision" in KINDS[kind])
    assert ("its output is added beside" in said) == kind.startswith("lokr")
    train(**KINDS[kind], max_train_steps=2, output_dir=str(tmp_path / "halves"))
    said = train(**KINDS[kind], max_train_steps=4, output_dir=str(tmp_path / "halves"))
    assert "Resuming from checkpoint-2: 2 of 4 steps are done" in said
    whole, halves = (load_file(tmp_path / run / WEIGHTS) for run in ("whole", "halves"))
    assert whole.keys() == halves.keys() and all(torch.equal(whole[key], halves[key]) for key in whole)


def test_it_draws_in_plain_diffusers_over_the_plain_base(
    train: Callable[..., str], tmp_path: Path, pocket: Path
) -> None:
    from diffusers import SanaTransformer2DModel
    from diffusers.loaders.lora_pipeline import SanaLoraLoaderMixin

    drawing = {"validation_disable": False, "validation_prompt": "a blueprint of a fox", "validation_steps": 0}
    drawing |= {"validation_resolution": "64x64", "validation_num_inference_steps": 2}
    train(**KINDS["lora over nf4"], **drawing, learning_rate=1e-2)
    assert {p.name[:6] for p in (tmp_path / "out" / "validation_images").glob("step*.png")} == {"step_0", "step_4"}
    plain = SanaTransformer2DModel.from_pretrained(pocket / "model" / "transformer")
    tensors, metadata = SanaLoraLoaderMixin.lora_state_dict(tmp_path / "out", return_lora_metadata=True)
    SanaLoraLoaderMixin.load_lora_into_transformer(tensors, plain, metadata=metadata)
    sides = [p for name, p in plain.named_parameters() if ".lora_B." in name]
    assert len(sides) == 10 * len(plain.transformer_blocks) and all(p.any() for p in sides)


def test_what_cannot_be_is_refused_before_anything_is_loaded(train: Callable[..., str]) -> None:
    for options, said in (
        ({"base_model_precision": "fp8-torchao"}, "compute capability 8.9"),
        ({"base_model_precision": "int8-torchao", **ROTATING}, "would turn biases too"),
        ({"base_model_precision": "nf4-bnb", "model_type": "full"}, "changes the very weights"),
    ):
        with pytest.raises(ConfigError, match=said):
            train(**options)
