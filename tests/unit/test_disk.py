"""Room on disks, what latents take of it, and that an error about pictures or room says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from simpletuner.config.read import load
from simpletuner.data.captions import CaptionRules
from simpletuner.data.encode import PlacedSample
from simpletuner.data.placement import PlacementRules
from simpletuner.data.types import Placement, Size
from simpletuner.errors import DataError
from simpletuner.reporting.progress import Reporter
from simpletuner.training import check, keeping, prepare
from simpletuner.training.disk import free_bytes, latent_bytes, nearest_there


def quiet() -> Reporter:
    return Reporter(Console(file=StringIO()))


def source(folder: Path) -> prepare.DatasetSource:
    rules = PlacementRules(64, resolution_type="pixel", alignment=32)
    return prepare.DatasetSource("set", folder, CaptionRules("null"), rules, 0, folder.parent / "cache", 4)


def half_of_each(folder: Path) -> None:
    """Headers stay, so that every file is found, and none can be decoded."""
    for path in folder.glob("*.png"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(3):
        Image.effect_noise((64, 64), 50 + number).convert("RGB").save(folder / f"{number}.png")
    half_of_each(folder)
    return folder


def test_a_folder_that_is_not_there_yet_has_the_room_of_the_one_above(tmp_path: Path) -> None:
    new = tmp_path / "new" / "folder"
    assert nearest_there(new) == tmp_path == nearest_there(tmp_path) and not new.exists()
    assert nearest_there(Path("/")) == Path("/")
    assert free_bytes(new) == pytest.approx(shutil.disk_usage(tmp_path).free, abs=2**30)  # others write meanwhile


def test_latents_take_a_number_for_each_channel_of_each_cell() -> None:
    assert latent_bytes([Size(1024, 1024)], 32, 32, 2) == 32 * 32 * 32 * 2
    assert latent_bytes([Size(64, 96), Size(32, 32)], 32, 4, 4) == (6 + 1) * 4 * 4
    # As they lie in memory, whatever sides a bucket has.
    assert latent_bytes([Size(100, 70)], 32, 3, 2) == torch.empty(3, 70 // 32, 100 // 32, dtype=torch.bfloat16).nbytes


def test_a_dataset_without_a_usable_picture_says_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(
        DataError, match=r"no images detected.*a\.png, because .*What to do: mend that, or leave .*disabled"
    ):
        prepare.find([source(folder)], quiet())


def test_pictures_that_turn_out_broken_say_what_to_do(cut: Path) -> None:
    found = prepare.find([source(cut)], quiet())
    with pytest.raises(DataError, match=r"none of its pictures could be decoded.*What to do: replace .*disabled true"):
        keeping.keep_latents(found, "print", lambda pixels: pixels, torch.float32, quiet())


def test_check_says_what_to_do_where_nothing_can_be_decoded(pocket_run: Callable[..., Path], tmp_path: Path) -> None:
    config = load(str(pocket_run()), environ={})
    for entry in config.datasets.train:
        half_of_each(Path(entry.instance_data_dir))
    reporter = Reporter(Console(record=True, width=400, file=StringIO()))
    assert not check.check(config, reporter, tmp_path / "page.html")
    said = reporter.console.export_text()
    assert "no picture of any training dataset can be decoded. What to do: see above why" in said


def test_check_says_how_much_room_is_lacking(cut: Path) -> None:
    item = prepare.find([source(cut)], quiet())[0]
    checked = check.Checked([], [], [])
    check.disk_room([item], None, torch.bfloat16, checked)
    assert not checked.problems and "The latents need about 0.0 MiB" in checked.lines[0]
    vast = Size(2**27, 2**27)
    item.placed = [PlacedSample(item.placed[0].sample, Placement(vast, vast, (0, 0, *vast)), "vast")]
    check.disk_room([item], None, torch.bfloat16, checked)
    assert (
        "no room for the latents. What to do: free " in checked.problems[0] and "cache_dir_vae" in checked.problems[0]
    )
