"""Pictures are decoded on several processes where that is worth their start, to the same end."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from simpletuner.data import survey
from simpletuner.data.quality import Quality
from simpletuner.data.survey import Look, Picture, Survey
from simpletuner.data.types import Size
from simpletuner.reporting.dataset_lines import sizes
from simpletuner.training.check import Checked, describe


def test_processes_see_what_one_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for index, path in enumerate(paths[:3]):
        Image.new("RGB", (40 + index, 30), (index * 80, 20, 90)).save(path)
    paths[3].write_bytes(b"no picture")
    started: list[int] = []

    class Pool(ProcessPoolExecutor):
        def __init__(self, processes: int, **how: Any) -> None:
            started.append(processes)
            super().__init__(processes, **how)

    monkeypatch.setattr(survey, "ProcessPoolExecutor", Pool)
    here = survey.look_at(paths, 2)
    assert started == [], "too little for processes"
    monkeypatch.setattr(survey, "WORTH_PROCESSES", 0)
    assert survey.look_at(paths, 2) == here == survey.look_at(paths, 1) and started == [2]
    assert here[paths[3]].problem and not here[paths[0]].problem
    assert survey._bytes(tmp_path / "none") == 0


def test_a_dataset_with_the_pictures_of_another_says_what_sets_it_apart() -> None:
    def dataset(name: str, resolution: str, caption: str = "a fox") -> Survey:
        path, size = Path("fox.png"), Size(64, 64)
        picture = Picture(path, size, size, (0.0, 0.0, 1.0, 1.0), 1.0, (caption,))
        return Survey(name, Path(), "image", [picture], [], {path: Look()}, resolution=resolution)

    datasets = [dataset("a", "64 px"), dataset("b", "32 px"), dataset("c", "16 px"), dataset("d", "32 px", "sks fox")]
    told = [line for line in describe(Checked([*datasets, dataset("e", "64 px")], [], [])) if "once more" in line]
    of = "these are the pictures of"
    assert told == [
        f"[b] {of} [a] once more: at 32 px, there at 64 px",
        f"[c] {of} [a] once more: at 16 px, there at 64 px",
        f"[d] {of} [b] once more: at 32 px too, with other captions",
        f"[e] {of} [a] once more: at 64 px too, with the same captions",
    ]


def test_what_is_not_listed_is_counted() -> None:
    paths = [Path(f"{number:02}.png") for number in range(15)]
    size, wanted = Size(64, 64), Size(128, 128)
    pictures = [Picture(path, size, wanted, (0.0, 0.0, 1.0, 1.0), 2.0, (path.stem,), cut="the end") for path in paths]
    grey = [Quality(size, 1.0, 1.0, (0, 0, 0, 0), 90.0, 0.5, number, str(number)) for number in range(15)]
    looks = {path: Look(quality=quality) for path, quality in zip(paths, grey, strict=True)}

    def told(of: int, copies: bool = False) -> list[str]:
        first = Survey("set", Path(), "image", pictures[:of], [], {path: looks[path] for path in paths[:of]})
        if copies:
            first.looks = {path: Look(quality=replace(grey[0], content=path.stem[0])) for path in paths}
        return describe(Checked([first], [], []))

    doubtful = told(15)
    start = doubtful.index("[set] 15 pictures look doubtful; the page shows each:")
    assert doubtful[start + 10].startswith("[set]   09.png: ") and doubtful[start + 11] == "[set]   … and 5 more"
    assert doubtful.count("[set]   … and 5 more") == 2, "of captions that are too long as well"
    assert doubtful[0].endswith("09.png and 5 more")
    assert not [line for line in told(10) if "more" in line]
    assert any(line.endswith("05.png …") for line in told(15, copies=True)), "a group of ten names six"


def test_the_smallest_is_that_of_the_least_area_and_says_so() -> None:
    def picture(name: str, width: int, height: int) -> Picture:
        return Picture(Path(name), Size(width, height), Size(64, 64), (0.0, 0.0, 1.0, 1.0), 1.0, ("",))

    pictures = [picture("wide.png", 256, 128), picture("small.png", 192, 160), picture("large.png", 512, 512)]
    (told,) = sizes(Survey("set", Path(), "image", pictures, [], {}))
    assert told == "[set] smallest by area 192x160 (small.png), largest 512x512 (large.png)"
