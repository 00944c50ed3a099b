"""The quickstart as a new user would follow it: its files and commands, on the pocket, with photographs as they come.

The commands are those of the page. What stands in for a card and a hub: the environment makes runs short and names the pocket
as the model, and pictures are trained at 128 px, as the page says.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from conftest import Python
from pages import Block, blocks
from PIL import Image

ENGLISH, SPANISH = "docs/quickstart.md", "docs/es/inicio-rapido.md"
SHORT = {"max_train_steps": "2", "validation_num_inference_steps": "2", "train_batch_size": "2"}
POCKET = {
    "pretrained_model_name_or_path": "{example:pocket}/model", "sana_complex_human_instruction": "None",
    "tokenizer_max_length": "32", "validation_resolution": "128x128", "mixed_precision": "no", "gradient_checkpointing": "false",
}  # fmt: skip
PHOTOGRAPHS, BROKEN, TURNED = 20, "IMG_07.jpg", 6


def photographs(folder: Path) -> None:
    """Twenty of them: upright and across, one turned by its EXIF, one broken."""
    folder.mkdir(parents=True)
    for number in range(PHOTOGRAPHS):
        size = ((200, 150), (150, 200), (160, 160))[number % 3]
        picture = Image.effect_noise(size, 40).convert("RGB")
        picture.paste((30 + 11 * number, 200 - 9 * number, 90), (20, 20, 110, 120))
        exif = Image.Exif()
        if number == 2:
            exif[0x0112] = TURNED
        picture.save(folder / f"IMG_{number:02}.jpg", quality=92, exif=exif)
    (folder / BROKEN).write_bytes((folder / BROKEN).read_bytes()[:700])


# Runs commands one after the other in one process.
DRIVER = """
import json, os, sys
from simpletuner.cli.app import app
for words, environment in json.loads(sys.argv[1]):
    os.environ.update(environment)
    app.main(words, prog_name="simpletuner", standalone_mode=False)
    for name in environment:
        del os.environ[name]
"""


def typed(python: Python, steps: list[tuple[Block, dict[str, str]]], folder: Path) -> str:
    """Run the commands of blocks as they stand, each with options from the environment; what was printed."""
    calls = []
    for block, options in steps:
        for line in block.text.splitlines():
            name, *words = shlex.split(line, comments=True)
            assert name == "simpletuner"
            calls.append((words, {f"SIMPLETUNER_{key.upper()}": value for key, value in options.items()}))
    run = python(DRIVER, json.dumps(calls), folder=folder)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    return run.stdout


def marked(page: str, name: str) -> list[Block]:
    return [b for b in blocks("bash") if b.page == page and b.mark == f"run: {name}"]


def test_its_commands_lead_to_pictures_and_a_result(tmp_path: Path, python: Python) -> None:
    """The example; then files by hand, check, train, generate. A grid, a report and an adapter come out, the broken file is
    named, and nothing is written beside the pictures."""
    files = [b for b in blocks("json") if b.page == ENGLISH and b.title]
    assert [b.title for b in files] == ["config/config.json", "config/multidatabackend.json"]
    (tmp_path / "config").mkdir()
    for block in files:
        (tmp_path / block.title).write_text(block.text.replace('"resolution": 1024', '"resolution": 128'))
    pictures = tmp_path / json.loads(files[1].text)[0]["instance_data_dir"]
    photographs(pictures)
    before = {path.name: path.read_bytes() for path in pictures.iterdir()}
    (example,) = marked(ENGLISH, "pocket")
    check, train, generate = marked(ENGLISH, "own")
    small = {**SHORT, **POCKET}
    said = typed(python, [(example, SHORT), (check, small), (train, small), (generate, {})], tmp_path)
    own = tmp_path / json.loads(files[0].text)["output_dir"]
    for output, names in (
        (tmp_path / "output" / "pocket", ("before_after.png", "report.html", "pipeline/model_index.json")),
        (own, ("before_after.png", "report.html", "pytorch_lora_weights.safetensors", "grids", "dataset.html")),
    ):
        assert not [name for name in names if not (output / name).exists()]
        report = (output / "report.html").read_text(encoding="utf-8")
        assert "Or train on: raise max_train_steps" in report and "Training is complete." in report, (
            "its log has the end"
        )
    assert BROKEN in said and len(list((tmp_path / "generated").rglob("*.png"))) >= 4
    assert {path.name: path.read_bytes() for path in pictures.iterdir()} == before


@pytest.mark.parametrize("languages", [("bash",), ("json",)])
def test_the_spanish_page_has_the_same_steps(languages: tuple[str, ...]) -> None:
    """The same files and commands, with a Spanish dog."""

    def steps(page: str) -> list[tuple[str, str, str]]:
        found = [b for b in blocks(*languages) if b.page == page]
        lines = [[line.partition("#")[0].rstrip() for line in b.text.splitlines()] for b in found]
        return [(b.title, b.mark, "\n".join(part)) for b, part in zip(found, lines, strict=True)]

    english = steps(ENGLISH)
    assert (
        english
        and [(title, mark, text.replace("mi-perro", "my-dog")) for title, mark, text in steps(SPANISH)] == english
    )
