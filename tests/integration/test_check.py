"""The real `simpletuner check` on real picture files."""

import json
import os
import re
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import small_clip
import torch
from conftest import Command
from PIL import Image, ImageFilter
from rich.console import Console

from simpletuner.config.read import load
from simpletuner.models.base import LoadSource, TextSettings
from simpletuner.models.families import FAMILIES
from simpletuner.models.sana import prompts
from simpletuner.reporting.progress import Reporter
from simpletuner.training import prepare, translate_data
from simpletuner.training.check import check

HOSTILE = '<script>alert(1)</script> & "quoted"'


def hashed(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_file_is_accounted_for_and_the_page_shows_it(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path, pocket: Path
) -> None:
    model = tmp_path / "no weights"
    shutil.copytree(pocket / "model", model, ignore=shutil.ignore_patterns("*.safetensors"))
    config = pocket_run(pretrained_model_name_or_path=str(model), train_batch_size=1)
    folder = tmp_path / "pictures"
    whole = (folder / "picture_0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.txt").write_text("half a picture")
    for name in ("film.mp4", "readme.md", "removed.txt"):
        (folder / name).write_bytes(b"1")
    Image.new("RGB", (20, 16), "red").save(folder / "<b>small.png")
    (folder / "<b>small.txt").write_text("word " * 100)
    (folder / "picture_1.txt").write_text("")
    (folder / "picture_2.txt").write_text(HOSTILE)
    before = hashed(folder)
    done = simpletuner("check", "--config", config)
    assert hashed(folder) == before
    said = done.stdout
    assert (
        "6 pictures found, 5 used" in said
        and "; 3 other files" in said
        and "film.mp4: .mp4 is not a picture format" in said
    )
    assert said.count("cut.png") == 1 and "skipped cut.png: it cannot be decoded" in said
    assert "1 picture has an empty caption: picture_1.png" in said
    assert "enlarged 4.00 times: <b>small.png" in said and "too long" in said
    assert "5 steps per epoch" in said and "Training would start." in said
    assert re.search(r"steps? takes? about \d+ seconds? on two CPU cores", said) and "GPU memory" not in said
    assert not list((tmp_path / "out").glob("checkpoint*"))
    page = (tmp_path / "out" / "dataset.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 5 and page.count("data:image/jpeg;base64,") == 5
    assert "<script" not in page and "&lt;script&gt;" in page and "&lt;b&gt;small.png" in page
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:)\w+:", page)
    assert "<b>6</b>found" in page and "<b>5</b>used" in page and "<b>1</b>skipped" in page
    assert "<b>3</b>other files" in page and "removed.txt" in page and "readme.md" in page


def test_what_training_would_refuse_is_exit_code_1(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    config = pocket_run(train_batch_size=16)
    good = tmp_path / "out" / "dataset.html"
    good.parent.mkdir()
    good.write_text("of a run that has finished")
    done = simpletuner("check", "--config", config, "--text_encoder_1_precision=fp8-torchao", check=False)
    assert done.returncode == 1 and "set repeats ≥ 3" in done.stdout and "would not start" in done.stdout
    assert "it needs an NVIDIA card of compute capability 8.9" in " ".join(done.stdout.split())
    entries = json.loads((tmp_path / "config" / "multidatabackend.json").read_text())
    entries[0]["repeats"] = 3
    (tmp_path / "config" / "multidatabackend.json").write_text(json.dumps(entries))
    for words in ("per epoch", "is seen", "on two CPU cores"):
        assert words not in done.stdout, "what cannot start takes no time"
    refused = tmp_path / "out" / "dataset-refused.html"
    assert str(refused) in done.stdout.replace("\n", "") and "set repeats ≥ 3" in refused.read_text(encoding="utf-8")
    assert good.read_text() == "of a run that has finished"
    right = simpletuner("check", "--config", config, "--reconstruct")
    assert "per epoch" in right.stdout and "on two CPU cores" in right.stdout
    assert good.read_text().startswith("<!doctype html>") and not refused.exists()
    again = simpletuner("check", "--config", config, "--page", tmp_path / "elsewhere.html")
    assert (tmp_path / "elsewhere.html").is_file() and "Training would start" in again.stdout


def test_what_validation_needs_is_asked_for_as_training_asks(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    """Sizes, preview decoder and CLIP: training refused them after a check that had said it would start."""
    draws = {"validation_disable": False, "validation_prompt": "a house", "validation_resolution": "64x64"}
    config = pocket_run(train_batch_size=1, validation_preview=True, evaluation_type="clip", **draws)
    clip = "--pretrained_evaluation_model_name_or_path"
    bad = ("--validation_resolution=100x100,96x64", "--validation_preview_decoder=./none.pth", clip, str(tmp_path))
    checked, trained = (simpletuner(command, "--config", config, *bad, check=False) for command in ("check", "train"))
    said = " ".join(checked.stdout.split())
    assert checked.returncode == 1 and "Training would not start" in said
    size = "validation_resolution = '100x100': both sides must be multiples of 32 pixels → use 96x96"
    assert size in said and size in " ".join(trained.stderr.split())
    assert "'./none.pth' (validation_preview_decoder)" in said and "96x64" not in said
    assert f"cannot load a CLIP from '{tmp_path}'" in said and "it has no config.json" in said
    away = simpletuner("check", "--config", config, clip, "nobody/clip")
    assert "'nobody/clip'" in away.stdout and "cannot be told without the CLIP" in " ".join(away.stdout.split())
    here = simpletuner("check", "--config", config, clip, small_clip.write(tmp_path / "clip"))
    assert "Training would start." in here.stdout
    undrawn = simpletuner("check", "--config", config, *bad, "--validation_disable")
    assert "Training would start." in undrawn.stdout


def test_it_says_of_each_key_and_dataset_what_training_says(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    config = pocket_run(dataloader_prefetch=True, quantize_via="cpu")
    file = tmp_path / "config" / "multidatabackend.json"
    pictures, texts = json.loads(file.read_text())
    asked = {"is_regularisation_data": True, "skip_file_discovery": "vae"}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    empty = [{**pictures, "id": name, "instance_data_dir": str(tmp_path / name)} for name in ("one", "two")]
    file.write_text(json.dumps([{**pictures, **asked}, *empty, texts]))
    checked, trained = (simpletuner(command, "--config", config, check=False) for command in ("check", "train"))
    assert checked.returncode == trained.returncode == 1
    said = [" ".join(done.stdout.split()) for done in (checked, trained)]
    for key in ("dataloader_prefetch", "quantize_via", "[set].skip_file_discovery", "[set].is_regularisation_data"):
        first, second = (text.partition(f"{key}: ")[2][:40] for text in said)
        assert first == second != "", key
    refused = " ".join(trained.stderr.split())
    assert "2 datasets cannot be used: 1. [one] no images" in refused and "2. [two] no images" in refused


@pytest.mark.parametrize("instruction", [(), ("A long prefix with some words.", "User prompt: ")])
@pytest.mark.parametrize("words", [0, 3, 28, 29, 30, 31, 32, 33, 60])
def test_the_text_said_to_be_cut_is_what_the_model_does_not_see(
    pocket: Path, instruction: tuple[str, ...], words: int
) -> None:
    """The rest alone gives the very token ids that the whole caption gives after truncation; one more token does not."""
    sana = FAMILIES["sana"]
    tokenizer = sana.tokenizer(LoadSource(path=str(pocket / "model")))
    settings = TextSettings(instruction, 32)
    caption = " ".join(["fox", "boat", "blueprint", "of", "hill"][i % 5] for i in range(words))
    cut = sana.cut_off(tokenizer, caption, settings)
    assert caption.endswith(cut)
    kept = caption[: len(caption) - len(cut)]
    whole, _ = prompts.tokenize(tokenizer, [caption], settings, True)
    rest, mask = prompts.tokenize(tokenizer, [kept], settings, True)
    assert torch.equal(whole[mask.bool()], rest[mask.bool()])
    if cut:
        assert mask.all(), "nothing is cut where there is room"


def _scene(seed: int, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """Something like a photograph: coarse shapes, fine grain."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    grain = generator.normal(0, 14, (size[1], size[0], 1))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def test_copies_and_doubtful_pictures_are_named(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    config = pocket_run(train_batch_size=1)
    folder = tmp_path / "pictures"
    for old in folder.iterdir():
        old.unlink()
    for index in range(4):
        _scene(index).save(folder / f"scene_{index}.png")
    (folder / "same.png").write_bytes((folder / "scene_0.png").read_bytes())
    _scene(1).resize((320, 240)).save(folder / "smaller.jpg", quality=60)
    _scene(7).filter(ImageFilter.GaussianBlur(4)).save(folder / "soft.png")
    letterbox = Image.new("RGB", (640, 480), "black")
    letterbox.paste(_scene(8, (640, 360)), (0, 60))
    letterbox.save(folder / "bars.png")
    Image.new("RGB", (640, 480), (90, 90, 92)).save(folder / "grey.png")
    for file in list(folder.iterdir()):
        file.with_suffix(".txt").write_text(f"a scene called {file.stem}")
    said = simpletuner("check", "--config", config).stdout
    assert "2 pictures are exact copies of one another, in 1 group" in said and "same.png = scene_0.png" in said
    assert "2 pictures look nearly the same, in 1 group" in said and "scene_1.png ≈ smaller.jpg" in said
    assert "soft.png: It looks blurred" in said and "bars.png: It has a border of one colour: 60 px top" in said
    assert "grey.png: It is nearly of one colour" in said and "3 pictures look doubtful" in said
    page = (tmp_path / "out" / "dataset.html").read_text(encoding="utf-8")
    assert "<b>3</b>doubtful" in page and "<b>2</b>copies" in page and "<b>2</b>near copies" in page
    assert page.count("data:image/jpeg;base64,") == 9 + 4


def test_names_that_are_no_plain_text(simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path) -> None:
    """Escape sequences, line ends and bytes that are no Unicode in file names: shown, never obeyed, never fatal."""
    config = pocket_run(train_batch_size=1)
    folder = tmp_path / "pictures"
    for name in (b"\x1b[31mred.png", b"caf\xe9.png", b"two\nlines.png"):
        for index, ending in enumerate((b".png", b".txt")):
            source = (folder / f"picture_{index}{ending.decode()}").read_bytes()
            (folder / os.fsdecode(name.replace(b".png", ending))).write_bytes(source)
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("")
    for command in ("check", "train"):
        done = simpletuner(command, "--config", config, "--max_train_steps=1")
        assert "\x1b" not in done.stdout and "\udce9" not in done.stdout
    assert "\\x1b[31mred.png" in simpletuner("check", "--config", config).stdout


def test_a_run_after_a_check_knows_which_pictures_cannot_be_decoded(
    pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    config = load(str(pocket_run(train_batch_size=1)), environ={})
    whole = (tmp_path / "pictures" / "picture_1.png").read_bytes()
    (tmp_path / "pictures" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pictures" / "cut.txt").write_text("a caption")
    said = StringIO()
    reporter = Reporter(Console(file=said, width=400))

    def told() -> list[str]:
        lines = [line for line in said.getvalue().splitlines() if " used (" in line or "skipped" in line]
        said.truncate(said.seek(0))
        return lines

    assert check(config, reporter)
    first = told()
    assert (
        first[0] == "[set] 5 pictures found, 4 used (64x64 × 4)" and "skipped cut.png: it cannot be decoded" in first[1]
    )
    assert check(config, reporter) and told() == first
    prepare.find([translate_data.dataset_source(config, config.datasets.train[0], 16, 16)], reporter)
    assert told() == first, "so training tells no other number before it encodes"
