"""Pictures that are measured and trained on as well are told, by what the files hold."""

from __future__ import annotations

from pathlib import Path

from simpletuner.data.encode import PlacedSample
from simpletuner.data.types import Placement, Sample, Size
from simpletuner.training.held_apart import notes

SIZE = Size(64, 64)


def pictures(*digests: str) -> list[PlacedSample]:
    place = Placement(SIZE, SIZE, (0, 0, 64, 64))
    return [PlacedSample(Sample(Path(f"{d}.png"), SIZE, ("",)), place, "k", digest=d) for d in digests]


def test_each_dataset_says_how_many_of_its_pictures_are_learned_and_where() -> None:
    trained = {"cats": pictures("a", "b"), "dogs": pictures("c"), "birds": pictures("d")}
    measured = {
        "apart": pictures("x", "y"),
        "part": pictures("a", "c", "x"),
        "one": pictures("b"),
        "twice": pictures("d", "d"),
    }
    part, one, twice = notes(trained, measured)
    assert part.startswith("WARNING: [part] 2 of 3 held-out pictures are trained on as well, in [cats], [dogs]: ")
    assert one.startswith("WARNING: [one] 1 of 1 held-out picture is trained on as well, in [cats]: ")
    assert "measures memory" in one and "take them out" in one
    assert twice.startswith("WARNING: [twice] 2 of 2 held-out pictures are trained on as well, in [birds]: ")
    assert notes(trained, {}) == notes({}, measured) == []
