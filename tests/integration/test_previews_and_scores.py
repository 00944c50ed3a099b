"""The real command with previews and scores: what lies in the folder, and that the pictures are the same without."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_clip
from click.testing import CliRunner
from conftest import Command

from simpletuner.cli.train import train
from simpletuner.data.linear_rgb import FILE, Moments
from simpletuner.errors import TunerError

DRAWN = {
    "validation_disable": False,
    "validation_prompt": "a red house by a blue fox and more words than this small clip reads",
    "validation_resolution": "64x64",
    "validation_num_inference_steps": 5,
    "max_train_steps": 1,
    "validation_preview": True,
    "validation_preview_steps": 2,
}


def lines(file: Path, key: str, value: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [line for line in found if line[key] == value]


def test_previews_and_scores_of_a_run(
    pocket_run: Callable[..., Path], simpletuner: Command, tmp_path: Path, pocket: Path
) -> None:
    clip, output = small_clip.write(tmp_path / "clip"), tmp_path / "out"
    scored = {"evaluation_type": "clip", "pretrained_evaluation_model_name_or_path": str(clip)}
    done = simpletuner("train", "--config", pocket_run(**DRAWN, **scored))
    assert "the model's own tiny decoder" in done.stdout
    assert "CLIP reads 12 tokens: of the prompt 'validation' (15) the end does not count" in done.stdout
    shown = [e["data"] for e in lines(output / "events.jsonl", "type", "validation.image")]
    assert [(d["step"], d["sampler_step"], d["sampler_steps"]) for d in shown] == [
        (step, at, 5) for step in (0, 1) for at in (2, 4, 5)
    ]
    assert {d["path"] for d in shown} == {f"previews/step_{n}_validation_0_64x64.png" for n in (0, 1)}
    assert shown[0]["resolution"] == [64, 64] and shown[0]["timestep"] > shown[1]["timestep"] > 0
    assert not list((output / "previews").iterdir()), "the finished pictures take their place"
    scores = lines(output / "metrics.jsonl", "kind", "score")
    assert {s["name"] for s in scores} == {"clip", "palette", "colour_distance", "nearest_distance"}
    assert {s["step"] for s in scores} == {0, 1} and all(s["value"] is not None for s in scores)
    mean = [s for s in scores if s["name"] == "clip" and s["nickname"] is None]
    assert len(mean) == 2 and all(0 <= s["min"] <= s["value"] <= s["max"] <= 100 and s["std"] == 0 for s in mean)

    # The same model without a decoder, and its cache without sums: a linear map of a few decodings.
    (noted,) = (tmp_path / "cache" / "vae").rglob(FILE)
    sums = Moments.load(noted.parent, 8)
    assert sums is not None and sums.cells == 4 * 64, "four pictures of 8 x 8 cells, noted while they were encoded"
    noted.unlink()
    first = (output / "validation_images" / "step_0_validation_0_64x64.png").read_bytes()
    shutil.copytree(pocket / "model", tmp_path / "model", ignore=shutil.ignore_patterns("preview_decoder"))
    plain = {"output_dir": str(tmp_path / "plain"), "pretrained_model_name_or_path": str(tmp_path / "model")}
    said = simpletuner("train", "--config", pocket_run(**{**DRAWN, **plain})).stdout
    assert "a linear map of latents to colours" in said and "CLIP" not in said
    again = tmp_path / "plain" / "validation_images" / "step_0_validation_0_64x64.png"
    assert again.read_bytes() == first, "previews and scores change no pixel"


@pytest.mark.parametrize(
    "wrong",
    [
        {"validation_preview_decoder": "/there/is/none.pth"},
        {"evaluation_type": "clip", "pretrained_evaluation_model_name_or_path": "/there/is/none"},
    ],
)
def test_a_wrong_path_is_told_before_anything_takes_time(
    wrong: dict[str, str], pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    done = CliRunner().invoke(train, ["--config", str(pocket_run(**DRAWN, **wrong))])
    assert isinstance(done.exception, TunerError)
    said = str(done.exception)
    assert list(wrong)[-1] in said and "there is no" in said and ("What to do" in said or "→" in said)
    assert "pictures found" not in done.output and not (tmp_path / "cache").exists()
