"""Optimizers, gradient release and EMA in whole runs on the pocket model, in one process: stop, resume, export."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from simpletuner.config.read import load
from simpletuner.errors import ConfigError
from simpletuner.reporting.progress import Reporter
from simpletuner.training.run import train

Run = Callable[..., tuple[Path, str]]


@pytest.fixture
def run(pocket_run: Callable[..., Path], tmp_path: Path) -> Run:
    """Train into a folder of ``tmp_path``; returns it and what was said."""

    def go(out: str, **options: object) -> tuple[Path, str]:
        settings = {"max_train_steps": 4, "checkpoint_step_interval": 2, "gradient_checkpointing": True}
        config = pocket_run(**{**settings, **options, "output_dir": str(tmp_path / out)})
        file = config.with_name("multidatabackend.json")
        pictures, texts = json.loads(file.read_text())
        file.write_text(json.dumps([pictures, {**pictures, "id": "held-out", "dataset_type": "eval"}, texts]))
        console = Console(file=io.StringIO(), width=240)
        train(load(str(config), environ={}), Reporter(console))
        assert isinstance(console.file, io.StringIO)
        return tmp_path / out, console.file.getvalue()

    return go


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


RUNS: dict[str, dict[str, Any]] = {
    "bf16 weights": {"optimizer": "adamw_bf16", "mixed_precision": "bf16", "use_ema": True, "ema_warmup_steps": 3},
    "release": {"optimizer": "torch-adamw", "optimizer_release_gradients": True, "grad_clip_method": "value"},
    "schedule-free": {"optimizer": "adamw_schedulefree", "lr_warmup_steps": 2, "eval_steps_interval": 1},
    "bitfit": {"layer_freeze_strategy": "bitfit", "use_ema": True, "ema_cpu_only": True, "optimizer": "prodigy"},
}


@pytest.mark.parametrize("name", RUNS)
def test_stopped_and_resumed_it_ends_with_the_same_bits(run: Run, name: str) -> None:
    options = RUNS[name]
    whole, said = run("whole", **options)
    run("parts", **{**options, "max_train_steps": 2})
    parts, again = run("parts", **options)
    assert "Resuming from checkpoint-2" in again and "changed since" not in again
    assert equal(weights(whole / "pipeline" / "transformer"), weights(parts / "pipeline" / "transformer"))
    start = weights(
        Path(json.loads((whole / "config.resolved.json").read_text())["pretrained_model_name_or_path"]) / "transformer"
    )
    moved = {
        k
        for k, v in weights(whole / "pipeline" / "transformer").items()
        if not torch.equal(v.float(), start[k].float())
    }
    assert moved and f"Optimizer: {options['optimizer']} (" in said
    if name == "bitfit":
        assert "bitfit: " in said and all(key.endswith("bias") or "norm" in key for key in moved)
        (checkpoint,) = whole.glob("checkpoint-4")
        average, trained = weights(checkpoint / "transformer_ema"), weights(checkpoint / "transformer")
        assert average.keys() == trained.keys(), "the average is a model like any other"
        assert {key for key in average if not torch.equal(average[key], trained[key])} == moved
    if name == "release":
        assert "Gradient release" in said
        _, without = run("parts", **{**options, "optimizer_release_gradients": False, "max_train_steps": 5})
        assert "Resuming from checkpoint-4" in without and "Done: 5 steps" in without
        assert "optimizer_release_gradients changed since checkpoint-4" in without, "told, and no obstacle"


def test_schedule_free_exports_and_measures_its_average(run: Run) -> None:
    """Not the point at which it takes gradients, which is what the checkpoint resumes from."""
    out, _ = run("out", **RUNS["schedule-free"])
    (checkpoint,) = out.glob("checkpoint-4")
    trained, exported = weights(checkpoint / "transformer"), weights(out / "pipeline" / "transformer")
    assert not equal(trained, exported)
    z = load_file(checkpoint / "optimizer.safetensors")
    shadows = {tuple(t.shape): t for key, t in z.items() if key.endswith(".z") and t.numel() > 1}
    name = next(key for key, value in trained.items() if sum(v.shape == value.shape for v in trained.values()) == 1
                and tuple(value.shape) in shadows)  # fmt: skip
    # y = 0.9 x + 0.1 z, so the average is x = (y - 0.1 z) / 0.9
    expected = (trained[name] - 0.1 * shadows[tuple(trained[name].shape)]) / 0.9
    torch.testing.assert_close(exported[name], expected, rtol=1e-4, atol=1e-6)


def test_held_out_loss_of_live_and_averaged_weights(run: Run) -> None:
    out, said = run("out", use_ema=True, learning_rate=1e-2, eval_steps_interval=2)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    averaged, live = ({e["step"]: e["loss"] for e in lines if e["kind"] == kind} for kind in ("eval", "eval_live"))
    assert set(averaged) == {0, 2, 4} and set(live) == {2, 4} and averaged[4] != live[4]
    assert f"held-out loss {averaged[4]:.4f} (EMA weights, live {live[4]:.4f}" in said


def test_what_only_the_class_refuses_is_a_problem_before_the_model_is_loaded(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"optimizer_config = 'nesterov=true'.*momentum"):
        run("out", optimizer="torch-sgd", optimizer_config="nesterov=true")


def test_sums_in_float32_and_paging_without_a_gpu_are_told(run: Run) -> None:
    options = {
        "train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "mixed_precision": "bf16",
        "max_train_steps": 2,
        "learning_rate": 1e-2,
    }
    _, said = run("a", **options, gradient_precision="fp32", optimizer="bnb-lion8bit-paged")
    assert "bnb-lion8bit-paged (" in said and "not paged, as there is no GPU" in said
    plain, _ = run("b", **options, optimizer="adamw_bf16")
    summed, _ = run("c", **options, optimizer="adamw_bf16", gradient_precision="fp32")
    assert not equal(weights(plain / "pipeline" / "transformer"), weights(summed / "pipeline" / "transformer"))
