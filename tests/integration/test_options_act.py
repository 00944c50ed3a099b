"""Options that the composition root itself reads: each changes what a run does. In one process, on the pocket model."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from simpletuner.config.read import load
from simpletuner.reporting.progress import Reporter
from simpletuner.training.run import train


@dataclass(frozen=True)
class Outcome:
    """What a run said and wrote."""

    said: str
    losses: tuple[float, ...]
    evals: tuple[dict[str, Any], ...]


Act = Callable[..., Outcome]


@pytest.fixture
def act(pocket_run: Callable[..., Path], tmp_path: Path) -> Act:
    """Run the pocket model for two steps; ``dataset`` changes the entry of the training pictures."""
    numbers = iter(range(99))

    def run(dataset: dict[str, object] | None = None, held_out: bool = False, **options: object) -> Outcome:
        out = tmp_path / f"out-{next(numbers)}"
        settings = {"max_train_steps": 2, "caption_dropout_probability": 0, "checkpoint_step_interval": 0}
        config = pocket_run(**{**settings, **options, "output_dir": str(out)})
        file = config.with_name("multidatabackend.json")
        pictures, texts = json.loads(file.read_text())
        entries = [{**pictures, **(dataset or {})}, texts]
        if held_out:
            entries.append({**pictures, "id": "held-out", "dataset_type": "eval"})
        file.write_text(json.dumps(entries))
        console = Console(file=io.StringIO(), width=200)
        torch.manual_seed(0)
        train(load(str(config), environ={}), Reporter(console))
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert isinstance(console.file, io.StringIO)
        return Outcome(
            console.file.getvalue(),
            tuple(line["loss"] for line in lines if line["kind"] == "step"),
            tuple(line for line in lines if line["kind"] == "eval"),
        )

    return run


def test_caption_dropout_trains_on_the_empty_caption(act: Act) -> None:
    """Dropping every caption is training without captions, step by step, and half of them is neither."""
    kept, dropped = act(caption_dropout_probability=0), act(caption_dropout_probability=1)
    without = act({"caption_strategy": "null"}, caption_dropout_probability=0)
    half = act(caption_dropout_probability=0.5)
    assert dropped.losses == without.losses and len(set(kept.losses)) == 2
    assert kept.losses != dropped.losses and half.losses not in (kept.losses, dropped.losses)


def test_checkpointing_evaluation_and_optimizer_options_act(act: Act) -> None:
    plain = act(held_out=True)
    assert "Gradient checkpointing" not in plain.said
    assert [(e["step"], e["samples"], e["weights"]) for e in plain.evals] == [(0, 4, "base model"), (2, 4, "weights")]
    other = act(
        held_out=True,
        gradient_checkpointing=True,
        gradient_checkpointing_interval=3,
        num_eval_images=1,
        eval_steps_interval=1,
        use_ema=True,
    )
    assert "Gradient checkpointing: 3 blocks" in other.said, "of the pocket's 7"
    assert other.losses == plain.losses, "recomputing activations changes no number"
    assert [(e["step"], e["samples"]) for e in other.evals] == [(0, 1), (1, 1), (2, 1)]
    assert {e["weights"] for e in other.evals[1:]} == {"EMA weights"}
    assert not act(held_out=True, eval_loss_disable=True).evals


def test_options_of_the_recipe_change_what_is_learned(act: Act) -> None:
    settings = {"max_train_steps": 3, "learning_rate": 1e-2}
    plain = act(**settings).losses
    for options in (
        {"optimizer": "torch-adamw"},
        {"optimizer_config": "eps=0.1"},
        {"optimizer_beta1": 0.1, "optimizer_beta2": 0.2},
        {"max_grad_norm": 1e-6, "optimizer_config": "eps=1e-3"},
        {"flow_schedule_shift": 0.5},
        {"seed": 8},
    ):
        assert act(**settings, **options).losses != plain, options


def test_options_of_the_ema_change_the_average(act: Act) -> None:
    def held_out_loss(**options: object) -> float:
        settings = {"max_train_steps": 3, "learning_rate": 1e-2, "num_eval_images": 1}
        return float(act(held_out=True, use_ema=True, **settings, **options).evals[-1]["loss"])

    figures = [held_out_loss(), held_out_loss(ema_decay=0.05), held_out_loss(ema_update_interval=2)]
    assert len(set(figures)) == 3
    assert held_out_loss(ema_device="cpu") == figures[0]


def test_options_of_validation_say_when_and_what_is_drawn(act: Act, tmp_path: Path) -> None:
    act(
        validation_disable=False,
        validation_prompt="a fox",
        validation_resolution="64x64",
        validation_num_inference_steps=1,
        validation_on_startup=False,
        validation_step_interval=1,
        num_validation_images=2,
        use_ema=True,
        ema_validation="ema_only",
        checkpoint_step_interval=1,
        checkpoints_total_limit=1,
    )
    (out,) = tmp_path.glob("out-*")
    drawn = {p.name for p in (out / "validation_images").glob("*_64x64*.png")}
    assert drawn == {f"step_{step}_validation_{i}_64x64_ema.png" for step in (1, 2) for i in (0, 1)}
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-2"]
