"""Pictures are decoded on several processes where that is worth their start, to the same end."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from simpletuner.data import survey


def test_processes_see_what_one_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for index, path in enumerate(paths[:3]):
        Image.new("RGB", (40 + index, 30), (index * 80, 20, 90)).save(path)
    paths[3].write_bytes(b"no picture")
    here = survey.look_at(paths, 2)  # too little for processes
    monkeypatch.setattr(survey, "WORTH_PROCESSES", 0)
    assert survey.look_at(paths, 2) == here == survey.look_at(paths, 1)
    assert here[paths[3]].problem and not here[paths[0]].problem
    assert survey._bytes(tmp_path / "none") == 0
