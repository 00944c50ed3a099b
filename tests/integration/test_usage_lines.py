"""The Python lines that a run ends with are run as they are, elsewhere, and draw its validation pictures to the pixel."""

import json
import os
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, own_environment
from forked_command import Forker
from PIL import Image
from rich.console import Console
from safetensors import safe_open

from simpletuner.config.read import load
from simpletuner.reporting.progress import Reporter

SIDES = {"target_module": ["Attention", "GLUMBConv"]}
LOKR = {"algo": "lokr", "multiplier": 0.5, "linear_dim": 4, "linear_alpha": 2.0, "factor": 4, "apply_preset": SIDES}
DRAWING = {
    "validation_disable": False,
    "validation_prompt": 'a blueprint of a "fox"',
    "validation_negative_prompt": "blurry",
    "validation_seed": 11,
    "validation_resolution": "64x96",
    "validation_num_inference_steps": 2,
    "learning_rate": 1e-2,
}
KINDS: dict[str, dict[str, Any]] = {
    "full": {"optimizer": "adamw_schedulefree", "lr_scheduler": "constant"},
    "lora": {
        **{"model_type": "lora", "peft_lora_target_modules": ["all"], "lora_rank": 4, "use_ema": True},
        **{"lora_format": "comfyui", "validation_lycoris_strength": 0.75, "validation_noise_scheduler": "unipc"},
    },
    "dora": {
        **{"model_type": "lora", "use_dora": True, "lora_rank": 4, "sana_complex_human_instruction": ["Draw:", ""]},
        **{"validation_noise_scheduler": "dpm++", "validation_randomize": True},
    },
    "lokr": {
        **{"model_type": "lora", "lora_type": "lycoris", "lycoris_config": LOKR},
        "validation_noise_scheduler": "flow_match",
    },
}


@pytest.fixture
def train(pocket_run: Callable[..., Path]) -> Callable[..., str]:
    """Train in this process; returns what was said."""

    def run(**options: Any) -> str:
        from simpletuner.training.run import train as real

        said = StringIO()
        real(load(str(pocket_run(**options)), environ={}), Reporter(Console(file=said, width=200)))
        return said.getvalue()

    return run


def lines_of(said: str) -> str:
    """The program within what was said."""
    _, _, rest = said.partition("import diffusers\n")
    program, end, _ = rest.partition('/out/image.png")\n')
    assert end, said
    return f"import diffusers\n{program}{end}"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Forker]:
    """An interpreter that knows nothing of this program, and has imported the libraries; their names are forgotten."""
    environment = own_environment()
    del environment["PYTHONPATH"]
    forker = Forker(environment, "import torch\nfrom diffusers import SanaPipeline")
    yield forker
    forker.end()


def drawn_by(interpreter: Forker, program: str, folder: Path) -> np.ndarray:
    """Run it in an empty folder."""
    done = interpreter.run(program, [], folder)
    assert done.returncode == 0, done.stderr
    assert not list(folder.glob("image.png")), "it is saved beside the model, not wherever one happens to be"
    return pixels(Path(program.rpartition('image.save("')[2].partition('"')[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_printed_lines_draw_the_very_validation_picture(
    train: Callable[..., str],
    simpletuner: Command,
    elsewhere: Forker,
    kind: str,
    tmp_path: Path,
    pocket: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places, away, base = {}, tmp_path / "away", str(pocket / "model")
    away.mkdir()
    if kind == "dora":  # folders as they are named from where training runs, and the lines run elsewhere
        monkeypatch.chdir(tmp_path)
        base = os.path.relpath(base)
        places = {"output_dir": "out", "pretrained_model_name_or_path": base}
    said = train(**{**DRAWING, **KINDS[kind], **places})
    out = tmp_path / "out"
    if kind == "lora":
        (shell,) = [line for line in said.splitlines() if line.startswith("# first, in a shell: simpletuner ")]
        simpletuner(*shell.partition("simpletuner ")[2].split())
    (before,) = out.glob("validation_images/step_0_*_0_*.png")
    label = "_ema" if "use_ema" in KINDS[kind] else ""
    (after,) = out.glob(f"validation_images/step_4_*_0_64x96{label}.png")
    assert np.array_equal(drawn_by(elsewhere, lines_of(said), away if kind == "dora" else tmp_path), pixels(after))
    assert not np.array_equal(pixels(before), pixels(after))
    told = {"full": "the optimizer's average", "lora": "EMA weights"}.get(kind, "live weights")
    assert f"{told})" in said
    if kind != "full":
        with safe_open(out / "pytorch_lora_weights.safetensors", "pt") as file:
            assert json.loads(file.metadata()["simpletuner"])["base_model"] == base
