"""The page of `simpletuner check` warns only where there is something to warn of."""

from dataclasses import replace
from pathlib import Path

from simpletuner.data.survey import Picture, Survey
from simpletuner.data.types import Size, Skipped
from simpletuner.reporting.dataset_page import page

GOOD = Picture(Path("a.png"), Size(64, 64), Size(64, 64), (0, 0, 1, 1), 1.0, ("a cat",), reconstruction=31.4)


def shown(*pictures: Picture) -> str:
    skipped = [Skipped(Path("b.png"), "b.png has no caption: b.txt does not exist beside it")]
    return page("Data", [Survey("set", Path("pictures"), "image", list(pictures), skipped)], [], []).partition(
        "<body>"
    )[2]


def test_all_is_well() -> None:
    said = shown(GOOD)
    assert '<p class="soft">VAE reconstruction 31.4 dB</p>' in said and "warn" not in said
    assert "1 picture<" in said and "1 file is not used" in said
    assert "caption</div>" not in said and "captions</div>" not in said, "a skipped file is counted as skipped alone"


def test_what_is_wrong_is_counted_and_marked() -> None:
    bad = replace(GOOD, captions=("",), enlarged=2.0, reconstruction=12.0)
    said = shown(GOOD, bad)
    assert "<b>1</b>empty captions" in said and "<b>1</b>enlarged" in said and "copies</div>" not in said
    assert (
        '<p class="warn">VAE reconstruction 12.0 dB</p>' in said and '<p class="warn">enlarged 2.00 times</p>' in said
    )


def test_frames_are_explained_where_something_is_cut_off() -> None:
    assert "is cut off" not in shown(GOOD)
    assert "is cut off" in shown(GOOD, replace(GOOD, crop=(0.1, 0, 0.8, 1)))
