"""What could not be decoded is remembered by content, never because a disk failed, and forgotten with the decoder."""

import json
from pathlib import Path

import pytest
import torch

from simpletuner.data.digests import digest_of
from simpletuner.data.encode import PlacedSample
from simpletuner.data.loader import LatentRef
from simpletuner.data.ondemand import OnDemand
from simpletuner.data.placement import PlacementRules, place
from simpletuner.data.types import Sample, Size
from simpletuner.data.undecodable import NAME, known, remember
from simpletuner.errors import DataError


def test_by_content_and_only_what_can_be_read(tmp_path: Path) -> None:
    picture, memory = tmp_path / "a.png", tmp_path / "memory"
    picture.write_bytes(b"half a picture")
    digest = digest_of(picture)
    assert known(memory) == {}
    remember(memory, [(tmp_path / "gone.png", "0" * 64, "x"), (picture, "1" * 64, "it was another file then")])
    assert known(memory) == {}
    remember(memory, [(picture, digest, "it is damaged")])
    picture.write_bytes(b"another half")
    remember(memory, [(picture, digest_of(picture), "it is damaged too")])
    assert known(memory) == {digest: "it is damaged", digest_of(picture): "it is damaged too"}
    content = json.loads((memory / NAME).read_text())
    (memory / NAME).write_text(json.dumps(content | {"decoder": "an older one"}))
    assert known(memory) == {}
    for nonsense in ("", "[]", '{"decoder": 3}', "{"):
        (memory / NAME).write_text(nonsense)
        assert known(memory) == {}


def test_a_batch_without_any_picture_names_each_once_and_what_to_do(tmp_path: Path) -> None:
    said: list[str] = []
    on_demand = OnDemand(lambda pixels: pixels, torch.float32, 2, said.append)
    refs = []
    for name in ("a.png", "b.png", "a.png"):  # a small dataset is repeated
        (tmp_path / name).write_bytes(b"half a picture")
        sample = Sample(tmp_path / name, Size(64, 64), ("",))
        placed = PlacedSample(sample, place(sample.size, PlacementRules(64, "pixel", alignment=32), 0), name)
        refs.append(LatentRef(name, None, name, ("",), placed=placed))
    with pytest.raises(DataError) as refused:
        on_demand(refs)
    on_demand.close()
    assert len(said) == 2, "each picture is told, with its reason"
    assert str(refused.value).startswith("no picture of this batch can be decoded: a.png, b.png. What to do: replace ")
    assert "`simpletuner check` names every picture that cannot be decoded" in str(refused.value)
