"""The real `simpletuner configure`: for scripts, and in a real pseudo-terminal."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import Command, command_line, own_environment

from simpletuner.config.read import load

if TYPE_CHECKING:
    import pexpect

DOWN, ENTER, CTRL_C, CLEAR = "\x1b[B", "\r", "\x03", "\x01\x0b"


def held(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_answers_become_files_that_check_and_train_accept(
    simpletuner: Command, pictures: Callable[..., Path], tmp_path: Path
) -> None:
    folder = pictures("my-fox", count=3, size=(160, 128))
    before = held(folder)
    answers = {"kind": "style", "pictures": "my-fox", "words": "soft gradients", "card": "none", "model": "pocket",
               "method": "lora", "train_batch_size": 2, "max_train_steps": 40, "output_dir": "out"}  # fmt: skip
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    done = simpletuner("configure", "--answers", "answers.json", "resolution=64")
    said = done.stdout
    assert "3 pictures in my-fox: 3 wide" in said and "3 have a caption file" in said
    assert re.search(r"resolution +64: as you said", said) and "ten times that" not in said
    assert "Memory: " not in said and "40 steps take about" in said and "Disk: about" in said
    assert "[style] 3 pictures found, 3 used" in said and "Training would start." in said
    assert said.rstrip().endswith("Next: simpletuner train")
    config = json.loads((tmp_path / "config" / "config.json").read_text())
    assert config["data_backend_config"] == "config/multidatabackend.json" and config["learning_rate"] == 2e-3
    assert config["user_prompt_library"] == "config/user_prompt_library.json"
    library = json.loads((tmp_path / "config" / "user_prompt_library.json").read_text())
    assert "soft gradients" in library["portrait"] and library["own_caption"] == "a drawing of thing 0"
    simpletuner("train", "--max_train_steps=5", "--validation_disable=true")
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()
    again = simpletuner("configure", "--answers", "answers.json", "resolution=64", "max_train_steps=50", check=False)
    assert again.returncode == 1 and '-  "max_train_steps": 40' in again.stdout and "add --yes" in again.stdout
    assert json.loads((tmp_path / "config" / "config.json").read_text()) == config, "nothing was overwritten"
    assert "holds a run already" not in again.stdout, "the run that is there was trained by these settings"
    other = simpletuner("configure", "--answers", "answers.json", "resolution=64", "train_batch_size=1", check=False)
    assert "holds a run already, with other settings" in " ".join(other.stdout.split())
    assert held(folder) == before


def test_all_that_must_not_be_is_said_at_once_and_nothing_is_written(
    simpletuner: Command, pictures: Callable[..., Path], tmp_path: Path
) -> None:
    folder = pictures("set", count=3)
    done = simpletuner(
        *("configure", "--defaults", "pictures=set", "card=24", "model=sana1.0-1.6b-1024", "method=full"),
        *("resolution=256", "train_batch_size=9", "optimizer=adamw_bf16", "mixed_precision=no"),
        *("max_train_steps=20", "validation_step_interval=1", "output_dir=set/out"),
        check=False,
    )
    assert done.returncode == 1
    for part in ("sana1.0-600m-512", "your folder holds 3 pictures", "it trains bf16 weights", "times as long as the training",
                 "output_dir 'set/out' lies inside it"):  # fmt: skip
        assert part in done.stderr, part
    empty = simpletuner("configure", "--defaults", "pictures=nowhere", check=False)
    assert empty.returncode == 1 and "it does not exist" in empty.stderr
    asked = simpletuner("configure", check=False)
    assert asked.returncode == 1 and "--answers FILE or --defaults" in asked.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"] and len(list(folder.iterdir())) == 6


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[[], pexpect.spawn[str]]]:
    """Start the dialogue in a pseudo-terminal of 40 lines and 160 columns; only Windows has none."""
    if sys.platform == "win32":
        pytest.skip("pseudo-terminals are POSIX's")
    import pexpect

    started = []

    def start() -> pexpect.spawn[str]:
        child = pexpect.spawn(
            sys.executable,
            command_line("configure")[1:],
            cwd=str(tmp_path),
            env=own_environment(TERM="xterm"),
            encoding="utf-8",
            timeout=90,
            dimensions=(40, 160),
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


def test_the_whole_dialogue(
    terminal: Callable[[], pexpect.spawn[str]],
    pictures: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pictures("shots", count=3, size=(128, 128))
    talk = terminal()
    talk.expect("What do you want to teach")
    talk.send(DOWN + ENTER)  # a style
    talk.expect("Folder with the pictures")
    talk.send("nowhere" + ENTER)
    talk.expect("nowhere .*is no folder: it does not exist")
    talk.expect("Folder with the pictures")
    talk.send("shots" + ENTER)
    talk.expect("3 pictures in shots")
    talk.expect("Name the style")
    talk.send(ENTER)
    talk.expect("Prompts are made of this answer")
    talk.expect("Name the style")
    talk.send("red squares" + ENTER)
    talk.expect("What will train")
    talk.send(ENTER)  # none
    talk.expect("pocket: without a card")
    talk.expect("Is that right")
    talk.send(DOWN + ENTER)
    talk.expect("What\\?")
    talk.send(DOWN * 3 + ENTER)  # model, method, resolution, train_batch_size
    talk.expect("train_batch_size:")
    talk.send(CLEAR + "many" + ENTER)
    talk.expect("it must be a whole number")
    talk.expect("train_batch_size:")
    talk.send(CLEAR + "2" + ENTER)
    talk.expect("train_batch_size +2: as you said")
    talk.expect("Is that right")
    talk.send(ENTER)
    talk.expect("wrote config/config.json")
    talk.expect("Training would start")
    talk.expect("Next: simpletuner train")
    assert status(talk) == 0
    monkeypatch.chdir(tmp_path)
    found = load(environ={})
    assert found.options.training.train_batch_size == 2
    assert found.options.validation.validation_prompt == "a picture in the style of red squares"


def test_files_that_are_there_are_shown_against_and_kept_by_a_plain_enter(
    terminal: Callable[[], pexpect.spawn[str]], pictures: Callable[..., Path], tmp_path: Path
) -> None:
    pictures("shots", count=3, size=(128, 128))
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text('{\n  "mine": true\n}\n')
    talk = terminal()
    _to_the_proposal(talk)
    talk.send(ENTER)
    talk.expect('-  "mine": true')
    talk.expect("Overwrite these files")
    talk.send(ENTER)
    talk.expect("Nothing was written")
    assert status(talk) == 1
    assert [p.name for p in (tmp_path / "config").iterdir()] == ["config.json"]
    assert (tmp_path / "config" / "config.json").read_text() == '{\n  "mine": true\n}\n'


def test_ctrl_c_leaves_nothing(
    terminal: Callable[[], pexpect.spawn[str]], pictures: Callable[..., Path], tmp_path: Path
) -> None:
    pictures("shots", count=3, size=(128, 128))
    talk = terminal()
    _to_the_card(talk)
    talk.send(CTRL_C)
    talk.expect("Interrupted")
    assert status(talk) == 130
    assert [p.name for p in tmp_path.iterdir()] == ["shots"]


def status(talk: pexpect.spawn[str]) -> int | None:
    """Of the command, once it has ended by itself."""
    from pexpect import EOF

    talk.expect(EOF)
    talk.close()
    return talk.exitstatus


def _to_the_card(talk: pexpect.spawn[str]) -> None:
    talk.expect("What do you want to teach")
    talk.send(ENTER)
    talk.expect("Folder with the pictures")
    talk.send("shots" + ENTER)
    talk.expect("What kind of thing")
    talk.send("owl" + ENTER)
    talk.expect("called in prompts.*sks owl")
    talk.send(ENTER)
    talk.expect("What will train")


def _to_the_proposal(talk: pexpect.spawn[str]) -> None:
    _to_the_card(talk)
    talk.send(ENTER)
    talk.expect("Is that right")
