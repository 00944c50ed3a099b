"""Fixtures: the pocket model, a tiny random Sana with the real configuration keys, pictures, and the real command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from forked_command import Forker
from PIL import Image
from processes import ended, until

ROOT = Path(__file__).resolve().parent.parent
POCKET = ROOT / "simpletuner" / "pocket"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As the tests found it: libraries and runs in this process set variables of their own later on.
ENVIRONMENT = dict(os.environ)


def own_environment(**environment: str) -> dict[str, str]:
    """Of a command: as the tests were started, with this checkout and without a card; and what it is given."""
    path = os.pathsep.join(filter(None, [str(ROOT), ENVIRONMENT.get("PYTHONPATH")]))  # packages may lie elsewhere
    return {**ENVIRONMENT, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", **environment}


@pytest.fixture(scope="session")
def pocket() -> Path:
    return POCKET


Python = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def python() -> Iterator[Python]:
    """``python -c program words`` in a folder, in a process of its own; variables of the environment are arguments.

    Forked from one that has imported the libraries, if it is given no such variables, and forks are safe; else afresh.
    """
    forker = Forker(own_environment())

    def run(program: str, *words: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        texts = [*map(str, words)]
        if sys.platform == "linux" and not environment:
            return forker.run(program, texts, folder)
        own = own_environment(**environment)
        return subprocess.run(
            [sys.executable, "-c", program, *texts], cwd=folder, capture_output=True, text=True, env=own, check=False
        )

    yield run
    forker.end()


@pytest.fixture(scope="session")
def tiny_sana(tmp_path_factory: pytest.TempPathFactory, python: Python) -> Path:
    """Stride 32, captions 2304 wide: the real Sana's shape with very few weights."""
    folder = tmp_path_factory.mktemp("tiny-sana")
    program = f"import runpy; runpy.run_path({str(ROOT / 'tools' / 'random_sana.py')!r}, run_name='__main__')"
    done = python(program, folder, folder=ROOT)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of small pictures with captions beside them."""

    def make(name: str = "pictures", count: int = 4, size: tuple[int, int] = (64, 64)) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image = Image.linear_gradient("L").resize(size).rotate(37 * index).convert("RGB")
            image.paste((255 - 40 * index, 30 * index, 90), (4, 4, size[0] // 2, size[1] // 3))
            image.save(folder / f"picture_{index}.png")
            (folder / f"picture_{index}.txt").write_text(f"a drawing of thing {index}\n", encoding="utf-8")
        return folder

    return make


Command = Callable[..., "subprocess.CompletedProcess[str]"]


def command_line(*arguments: object) -> list[str]:
    """The real command, from this very checkout."""
    return [sys.executable, "-c", "from simpletuner.cli.app import main; main()", *map(str, arguments)]


def started(
    *arguments: object, cwd: Path | None = None, **environment: str
) -> AbstractContextManager[subprocess.Popen[str]]:
    """The real command in the background, all it says in one stream; it ends with the block."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return ended(subprocess.Popen(command_line(*arguments), cwd=cwd, env=own_environment(**environment), **pipes))


def stopped_when(
    reached: Callable[[], bool], config: Path, cwd: Path, by: signal.Signals = signal.SIGKILL
) -> tuple[int, str]:
    """Train until something is reached, then send a signal; the exit status and what was said."""
    with started("train", "--config", config, cwd=cwd) as process:
        until(reached, process)
        process.send_signal(by)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output


def has_recorded(output: Path, step: int) -> bool:
    """Whether a run has this step in its metrics."""
    metrics = output / "metrics.jsonl"
    return metrics.is_file() and f'"step": {step}' in metrics.read_text()


@pytest.fixture
def simpletuner(tmp_path: Path, python: Python) -> Command:
    """Run the real command in ``tmp_path``."""

    def run(*arguments: object, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        done = python(command_line()[-1], *arguments, folder=tmp_path, **environment)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def pocket_run(tmp_path: Path, pictures: Callable[..., Path]) -> Callable[..., Path]:
    """Write a small configuration on the pocket model into ``tmp_path/config``."""

    def write(**options: object) -> Path:
        folder = tmp_path / "config"
        folder.mkdir(exist_ok=True)
        config = {
            "model_type": "full",
            "model_family": "sana",
            "pretrained_model_name_or_path": str(POCKET / "model"),
            "output_dir": str(tmp_path / "out"),
            "mixed_precision": "no",
            "sana_complex_human_instruction": "None",
            "tokenizer_max_length": 32,
            "gradient_checkpointing": False,
            "learning_rate": 1e-3,
            "train_batch_size": 2,
            "max_train_steps": 4,
            "validation_disable": True,
            "seed": 7,
            **options,
        }
        dataset = {
            "id": "set",
            "instance_data_dir": str(pictures()),
            "resolution": 64,
            "resolution_type": "pixel",
            "caption_strategy": "textfile",
            "cache_dir_vae": str(tmp_path / "cache" / "vae"),
        }
        texts = {
            "id": "texts",
            "dataset_type": "text_embeds",
            "default": True,
            "cache_dir": str(tmp_path / "cache/text"),
        }
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "multidatabackend.json").write_text(json.dumps([dataset, texts]), encoding="utf-8")
        return folder / "config.json"

    return write


def pytest_configure() -> None:
    """No deadlines: the first call of a property test pays for imports, and the machines have two cores."""
    from hypothesis import settings

    settings.register_profile("repeatable", deadline=None, derandomize=True)
    settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="Many more cases in the property tests of the data path.")
