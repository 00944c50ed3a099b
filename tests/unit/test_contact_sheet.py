"""The contact sheet of `simpletuner generate`: where its pictures lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from simpletuner.data.types import Size
from simpletuner.evaluation.pictures import Picture
from simpletuner.training.generating import sheet

CELL, LEFT = 168, 110  # px: of a cell with its margin, before the first


def shade(seed: int) -> tuple[int, int, int]:
    return (seed, 90, 200)


def drawn(folder: Path, seeds: int, prompts: Sequence[str] = ("a fox",), sizes: Sequence[int] = (64,)) -> list[Picture]:
    made = []
    for prompt in prompts:
        for edge in sizes:
            for number in range(seeds):
                file = folder / f"{prompt}_{edge}_{number}.png"
                Image.new("RGB", (edge, edge), shade(number)).save(file)
                made.append(Picture(0, "", prompt, prompt, Size(edge, edge), number, number, file))
    return made


def places(file: Path) -> dict[tuple[int, int], int]:
    """The seed of what lies in each cell, by column and row."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    columns, rows = (image.width - LEFT) // CELL, image.height // CELL
    top = image.height - rows * CELL
    found = {}
    for column in range(columns):
        for row in range(rows):
            red, green, blue = image.getpixel((LEFT + column * CELL + 80, top + row * CELL + 80))  # type: ignore[misc]
            if (green, blue) == (90, 200):
                found[column, row] = red
    return found


def test_seeds_of_one_prompt_lie_in_a_row(tmp_path: Path) -> None:
    four = places(sheet(drawn(tmp_path, 4), tmp_path / "grid.png"))
    assert four == {(column, 0): column for column in range(4)}
    two_sizes = places(sheet(drawn(tmp_path, 3, sizes=(64, 96)), tmp_path / "grid.png"))
    assert two_sizes == {(column, row): column for column in range(3) for row in range(2)}


@pytest.mark.parametrize(("seeds", "across"), [(6, 6), (7, 3), (20, 5)])
def test_many_seeds_lie_near_a_square(seeds: int, across: int, tmp_path: Path) -> None:
    found = places(sheet(drawn(tmp_path, seeds), tmp_path / "grid.png"))
    assert found == {(seed % across, seed // across): seed for seed in range(seeds)}


def test_a_few_prompts_stand_side_by_side(tmp_path: Path) -> None:
    found = places(sheet(drawn(tmp_path, 3, ("a fox", "an owl")), tmp_path / "grid.png"))
    assert found == {(column, row): row for column in range(2) for row in range(3)}


def test_a_long_prompt_is_read_whole_above_a_narrow_sheet(tmp_path: Path) -> None:
    heights = []
    for prompt in ("a fox", "a fox in the snow under tall trees in the evening of a very long day of summer rain"):
        with Image.open(sheet(drawn(tmp_path, 2, (prompt,)), tmp_path / "grid.png")) as image:
            heights.append(image.height)
    assert heights[1] == heights[0] + 16, "its second line is there"
