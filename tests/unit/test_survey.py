"""Pictures are decoded on several processes where that is worth their start, to the same end."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from simpletuner.data import survey
from simpletuner.data.survey import Look, Picture, Survey
from simpletuner.data.types import Size
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
