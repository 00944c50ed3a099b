"""Held-out loss, pictures over time and the best checkpoint in real runs on the pocket model."""

import json
import os
import signal
import threading
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from simpletuner.config.read import load
from simpletuner.evaluation.lettering import LINE
from simpletuner.reporting.progress import Reporter

Train = Callable[..., tuple[str, list[dict[str, Any]]]]
OPTIONS: dict[str, Any] = {
    "lr_scheduler": "constant", "learning_rate": 1e-2, "use_ema": True, "checkpoint_step_interval": 2,
    "checkpoints_total_limit": 1, "eval_epoch_interval": 0.5, "eval_dataset_id": "held-out", "num_eval_images": 3,
    "eval_timesteps": 3, "eval_batch_size": 2,
}  # fmt: skip


@pytest.fixture
def train(pocket_run: Callable[..., Path], tmp_path: Path) -> Train:
    """Train in this process, with a held-out dataset; what was said, and the lines of the metrics file."""

    def run(output: str, said: StringIO | None = None, **options: Any) -> tuple[str, list[dict[str, Any]]]:
        from simpletuner.training.run import train as real

        config = pocket_run(**{**OPTIONS, **options}, output_dir=str(tmp_path / output))
        file = config.with_name("multidatabackend.json")
        pictures, texts = json.loads(file.read_text())
        file.write_text(json.dumps([pictures, {**pictures, "id": "held-out", "dataset_type": "eval"}, texts]))
        said = said or StringIO()
        real(load(str(config), environ={}), Reporter(Console(file=said, width=300)))
        lines = (tmp_path / output / "metrics.jsonl").read_text().splitlines()
        return said.getvalue(), [json.loads(line) for line in lines]

    return run


def figures(lines: list[dict[str, Any]]) -> list[Any]:
    """All held-out figures, in full."""
    held_out = [line for line in lines if line["kind"].startswith("eval")]
    return [(line["kind"], line["step"], line["loss"], line["by_sigma"], line["samples"]) for line in held_out]


def test_held_out_loss_has_the_same_bits_after_a_resume_and_for_every_batch_size(train: Train, tmp_path: Path) -> None:
    drawing = {
        **{"validation_disable": False, "validation_prompt": "a fox", "validation_resolution": "64x64"},
        **{"validation_num_inference_steps": 1, "validation_epoch_interval": 1, "validation_batch_size": 2},
        **{"validation_disable_unconditional": False, "num_validation_images": 2},
    }
    said, whole = train("whole", max_train_steps=4, **drawing)
    # 4 pictures in batches of 2: an epoch is 2 steps, and half of one is 1.
    assert [f[:2] for f in figures(whole)] == [
        ("eval", 0), *((kind, step) for step in (1, 2, 3, 4) for kind in ("eval_live", "eval")),
    ]  # fmt: skip
    assert all(len(f[3]) == 3 and f[4] == 3 for f in figures(whole))
    best = json.loads((tmp_path / "whole" / "best.json").read_text())
    saved = {f[1]: f[2] for f in figures(whole) if f[0] == "eval" and f[1] in (2, 4)}
    assert best["held_out_loss"] == min(saved.values()) == saved[best["step"]] and best["weights"] == "EMA weights"
    assert (
        f"best checkpoint  {best['checkpoint']} (held-out loss {best['held_out_loss']:.4f}; named in best.json)" in said
    )
    assert best["step"] == 4 and "Or draw with step" not in said

    drawn = [line for line in whole if line["kind"] == "picture"]
    assert {line["step"] for line in drawn} == {0, 2, 4} and len(drawn) == 4 + 2 * 8
    assert {line["nickname"] for line in drawn} == {"validation", "unconditional"}
    for name in ("validation", "unconditional"):
        with Image.open(tmp_path / "whole" / "grids" / f"{name}.png") as sheet:
            assert sheet.size == (110 + 3 * 168 + 8, 24 + LINE + 4 * 168 + 8)

    train("parts", max_train_steps=2)
    said, parts = train("parts", max_train_steps=4)
    assert "Resuming from checkpoint-2" in said and figures(parts) == figures(whole), "drawing changes nothing either"
    # Faster and faster, so that it gets worse.
    faster = {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 4, "learning_rate": 0.1, "use_ema": False}
    said, other = train("other", max_train_steps=4, train_batch_size=1, **faster)
    assert figures(other)[0] == figures(whole)[0]
    equal, same = train("same", max_train_steps=2, checkpoint_step_interval=1, use_ema=False, learning_rate=1e-30)
    assert len({figure[2] for figure in figures(same)}) == 1 and "best checkpoint  checkpoint-1 " in equal
    assert "Or draw with step" not in equal, "the end is as good"
    earlier = f"lower than the end's: simpletuner generate {tmp_path / 'other' / 'checkpoint-2'} --prompt "
    assert "Or draw with step 2, whose held-out loss was " + earlier in said


def test_a_signal_while_pictures_are_drawn_waits_for_one_of_them(train: Train, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    drawing = {
        **{"validation_disable": False, "validation_prompt_library": True, "validation_resolution": "64x64"},
        **{"validation_num_inference_steps": 30, "evaluation_type": "none", "eval_loss_disable": True},
    }
    ended = threading.Event()

    def stop() -> None:
        while not ended.wait(0.002):
            if any(out.glob("validation_images/*.png")):
                return os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    said = StringIO()
    try:
        with pytest.raises(KeyboardInterrupt):
            train("stopped", max_train_steps=4, said=said, **drawing)
    finally:
        ended.set()
        thread.join()
    drawn, text = len(list(out.glob("validation_images/step_0_*_64x64.png"))), said.getvalue()
    assert 1 <= drawn < 20 and f"step 0: {20 - drawn} pictures left undrawn, as the run is to stop" in text
    assert "the pictures are not scored" in text and "Stopped before the first step, so there is no checkpoint" in text
    assert not list(out.glob("checkpoint-*"))
