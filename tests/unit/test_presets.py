"""The packaged presets: up to date with what writes them, and each one a configuration that loads as it is copied."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from simpletuner.config.examples import EXAMPLES, copy
from simpletuner.config.read import load

ROOT = Path(__file__).resolve().parents[2]


def test_the_files_are_what_the_script_writes() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "write_presets.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_folder_of_presets_is_offered() -> None:
    folders = {path.name for path in (ROOT / "simpletuner" / "config" / "examples").iterdir() if path.is_dir()}
    assert folders == {name for name, example in EXAMPLES.items() if example.folder.name == name} - {"pocket"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_copy_loads_once_there_are_pictures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copy(name, Path("config"))
    entries = json.loads(Path("config/multidatabackend.json").read_text())
    for entry in entries:
        folder = Path(entry.get("instance_data_dir", "x"))
        if not folder.is_absolute() and "{" not in str(folder):
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(folder / "a.png")
    config = load(environ={})
    assert config.datasets.train and config.config_file.startswith("config")
    assert name != "sana" or not config.notices, "what one starts from has nothing to tell"
    asked = json.loads(Path("config/config.json").read_text())
    model_type = {key.lstrip("-"): value for key, value in asked.items()}["model_type"]
    assert config.options.model.model_type == model_type == ("lora" if name.endswith(("-lora", "-lokr")) else "full")


def test_the_adapters_of_the_pocket_train_what_the_pocket_trains() -> None:
    plain = json.loads((EXAMPLES["pocket"].folder / "multidatabackend.json").read_text())
    for name in ("pocket-lora", "pocket-lokr"):
        assert json.loads((EXAMPLES[name].folder / "multidatabackend.json").read_text()) == plain
