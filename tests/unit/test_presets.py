"""The packaged presets: up to date with what writes them, and each one a configuration that loads as it is copied."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_copy_reads_the_copies_beside_it_and_trains_into_a_folder_of_its_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    outputs = {example: _settings(_packaged(example))["output_dir"] for example in EXAMPLES}
    folders = ("config", f"config/{name}", 'a "b"/c', f"config/a-{name}", str(tmp_path / "beyond"), ".")
    for folder in map(Path, folders):
        names = {path.name for path in copy(name, folder)}
        settings = _settings(folder / "config.json")
        beside = {Path(value) for value in settings.values() if isinstance(value, str) and value.endswith(".json")}
        assert beside == {folder / file for file in names - {"config.json"}}
        outputs[str(folder)] = settings["output_dir"]
    assert len({Path(place).resolve() for place in outputs.values()}) == len(EXAMPLES) + len(folders), "no two are one"
    assert outputs["config"] == f"output/config-{name}", "relative, as the examples' own"


def test_a_copy_made_again_after_its_run_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copy("pocket", Path("config"))
    first = Path(_settings(Path("config/config.json"))["output_dir"])
    first.mkdir(parents=True)
    copy("pocket", Path("config"), force=True)
    assert _settings(Path("config/config.json"))["output_dir"] == str(first), "nothing was trained there"
    (first / "run.json").write_text("{}")
    copy("pocket", Path("config"), force=True)
    assert _settings(Path("config/config.json"))["output_dir"] == f"{first}-2"


def _packaged(example: str) -> Path:
    return EXAMPLES[example].folder / EXAMPLES[example].files["config.json"]


def _settings(file: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(file.read_text())
    return settings


def test_the_adapters_of_the_pocket_train_what_the_pocket_trains() -> None:
    plain = json.loads((EXAMPLES["pocket"].folder / "multidatabackend.json").read_text())
    for name in ("pocket-lora", "pocket-lokr"):
        assert json.loads((EXAMPLES[name].folder / "multidatabackend.json").read_text()) == plain
