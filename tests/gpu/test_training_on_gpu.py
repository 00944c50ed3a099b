"""The real program on a GPU, step by step beside diffusers' own forward: every kind of training on the fast way."""

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from simpletuner.config.read import load
from simpletuner.reporting.progress import Reporter
from simpletuner.training import translate_memory

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    # Of libraries, where the pocket's sizes do not suit them; errors elsewhere.
    pytest.mark.filterwarnings("ignore:inner dimension.*not aligned:UserWarning"),
]

SIDES = {"target_module": ["Attention", "GLUMBConv"]}
LOKR = {"algo": "lokr", "multiplier": 1.0, "linear_dim": 4, "linear_alpha": 4.0, "factor": 4, "apply_preset": SIDES}
LORA = {"model_type": "lora", "learning_rate": 3e-3, "lora_rank": 4, "peft_lora_target_modules": ["all"]}
KINDS: dict[str, dict[str, Any]] = {
    "full": {"optimizer": "adamw_bf16"},
    "full, averaged": {"optimizer": "adamw_bf16", "use_ema": True},
    "full, recomputed": {"optimizer": "adamw_bf16", "gradient_checkpointing": True},
    "full, accumulated": {"optimizer": "adamw_bf16", "gradient_accumulation_steps": 2},
    "full, released": {"optimizer": "optimi-adamw", "optimizer_release_gradients": True, "max_grad_norm": 0},
    "full, released, bf16": {
        "optimizer": "adamw_bf16",
        "optimizer_release_gradients": True,
        "grad_clip_method": "value",
        "max_grad_norm": 0.01,
        "gradient_checkpointing": True,
    },
    "full, released, by the host": {
        "optimizer": "optimi-lion",
        "optimizer_release_gradients": True,
        "max_grad_norm": 0,
    },
    "full, torch": {"optimizer": "torch-adamw"},
    "full, kahan": {"optimizer": "optimi-adamw"},
    "full, 8 bits": {"optimizer": "ao-adamw8bit"},
    "full, released, 8 bits": {"optimizer": "ao-adamw8bit", "optimizer_release_gradients": True, "max_grad_norm": 0},
    "lora": {**LORA, "optimizer": "adamw_bf16"},
    "lora, dropout, recomputed": {**LORA, "lora_dropout": 0.1, "gradient_checkpointing": True},
    "lora over nf4, paged": {
        **LORA,
        "base_model_precision": "nf4-bnb",
        "quantize_via": "cpu",
        "optimizer": "bnb-lion8bit-paged",
        "gradient_checkpointing": True,
    },
    "lora over nf4": {**LORA, "base_model_precision": "nf4-bnb", "gradient_checkpointing": True},
    "lora over int8, by the host": {
        **LORA,
        "base_model_precision": "int8-torchao",
        "optimizer": "optimi-lion",
        "learning_rate": 3e-4,
    },
    "lora over fp8 weights": {**LORA, "base_model_precision": "fp8wo-torchao"},
    "lora over int8 of both sides": {**LORA, "base_model_precision": "int8dq-torchao", "optimizer": "adamw_bf16"},
    "lokr": {
        "model_type": "lora",
        "learning_rate": 3e-3,
        "lora_type": "lycoris",
        "lycoris_config": LOKR,
        "optimizer": "adamw_bf16",
    },
}
REPLAYED = {"full", "full, averaged", "full, recomputed", "full, torch", "full, kahan", "full, 8 bits", "lora", "lokr"}
REPLAYED |= {"lora over nf4, paged", "lora over nf4", "lora over int8, by the host", "lora over fp8 weights"}
REPLAYED |= {"full, released", "full, released, bf16", "full, released, 8 bits"}
COMMON = {"mixed_precision": "bf16", "learning_rate": 1e-4, "max_train_steps": 8, "train_batch_size": 2}


@pytest.fixture
def train(pocket_run: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[str, list[float], Path]]:
    """Train in this process; what was said, the loss of every step, and the folder."""

    def run(name: str, **options: Any) -> tuple[str, list[float], Path]:
        from simpletuner.training.run import train as real

        said, out = StringIO(), tmp_path / name
        config = load(str(pocket_run(**{**COMMON, **options, "output_dir": str(out)})), environ={})
        real(config, Reporter(Console(file=said, width=200)))
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return said.getvalue(), [line["loss"] for line in lines if line["kind"] == "step"], out

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_has_the_loss_of_the_plain_way(kind: str, train: Callable[..., Any]) -> None:
    said, fast, _ = train("fast", **KINDS[kind], transformer_forward="fast")
    assert "hand-written kernels" in said and "without a CUDA graph" not in said
    assert ("a step is one CUDA graph" in said) is (kind in REPLAYED)
    _, plain, _ = train("plain", **KINDS[kind], transformer_forward="diffusers")
    print(kind, [round(x, 3) for x in fast], [round(x, 3) for x in plain])
    assert len(fast) == len(plain) == 8
    assert fast == pytest.approx(plain, rel=0.04)


@pytest.mark.parametrize("kind", ["full", "full, released, bf16"])
def test_weights_that_stepped_aside_for_a_picture_go_on(
    kind: str, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs are captured anew where the weights lie afterwards."""
    drawn = {"validation_disable": False, "validation_prompt": "a fox", "validation_resolution": "64x64"}
    _, stayed, _ = train("stayed", **KINDS[kind], max_train_steps=12)
    found = translate_memory.within

    def aside(*arguments: Any) -> Any:
        return replace(found(*arguments), aside=True)

    monkeypatch.setattr(translate_memory, "within", aside)
    said, losses, folder = train("aside", **KINDS[kind], **drawn, max_train_steps=12, validation_step_interval=5)
    assert "leaves the GPU while a validation picture" in said and "without a CUDA graph" not in said
    assert len(list((folder / "validation_images").glob("*.png"))) >= 3
    assert losses == pytest.approx(stayed, rel=1e-2)


@pytest.mark.parametrize("kind", ["full", "full, averaged", "full, released, bf16", "lora"])
def test_a_resumed_run_goes_on_as_the_whole_one(kind: str, train: Callable[..., Any]) -> None:
    _, whole, first = train("whole", **KINDS[kind], checkpoint_step_interval=4)
    train("halves", **KINDS[kind], max_train_steps=4)
    said, halves, second = train("halves", **KINDS[kind])
    assert "Resuming from" in said and halves == pytest.approx(whole, rel=1e-3)
    start, end, again = (flat(folder) for folder in (first / "checkpoint-4", first, second))
    print(kind, "apart", (again - end).norm() / (end - start).norm())
    assert (again - end).norm() < 0.05 * (end - start).norm(), "as far as it went"
    trees = [json.loads((last(folder) / "optimizer.json").read_text()) for folder in (first, second)]
    assert trees[0] == trees[1], "a second checkpoint counts the steps of graphs as a first one does"


def last(folder: Path) -> Path:
    """The last checkpoint of a run."""
    return max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def flat(folder: Path) -> torch.Tensor:
    """All trained weights of a checkpoint, or of the last one of a run."""
    if not folder.name.startswith("checkpoint"):
        folder = last(folder)
    files = sorted([*folder.rglob("diffusion_pytorch_model*.safetensors"), *folder.glob("*lora*.safetensors")])
    return torch.cat([tensor.float().flatten() for file in files for _, tensor in sorted(load_file(file).items())])
