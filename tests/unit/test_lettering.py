"""Words on sheets: every letter is there or spelt out, lines fit, and no picture or line is cut through."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simpletuner.evaluation.grid import MOST_LINES, grid
from simpletuner.evaluation.lettering import ELLIPSIS, LINE, drawable, font, has, lines

LONG = "a close-up photo of pipo toy, soft daylight, " * 9


@pytest.mark.parametrize(
    "text", ["café piñata cumpleaños", "Größe Œuvre Łódź İstanbul Việt", "Ωμέγα ἄλφα", "Щенок їжак"]
)
def test_letters_of_europe_are_there(text: str) -> None:
    assert all(has(letter) for letter in text) and drawable(text) == text


def test_others_are_spelt() -> None:
    assert not has("犬") and not has("🐶")
    assert drawable("cafe\u0301") == "café"  # as a Mac writes it
    assert drawable("my 🐶") == "my (dog face)" and drawable("柴犬 dog") == "(2 CJK) dog"
    assert drawable("ねこ") == "neko" and drawable("강") == "gang" and drawable("ｆｕｌｌ") == "full"
    assert drawable("👩\u200d🚀\ufe0f") == "(woman)(rocket)" and drawable("\ue000") == "?"


def test_the_font_has_its_licence_beside_it() -> None:
    file = Path(str(font().path))
    assert file.stat().st_size < 150_000 and "Bitstream Vera" in (file.parent / "LICENSE").read_text()


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80), st.integers(30, 300), st.integers(1, 4))
def test_lines_fit_and_lose_nothing_unsaid(text: str, width: int, most: int) -> None:
    found = lines(text, width, most)
    assert len(found) <= most and all(font().getlength(line) <= width for line in found)
    whole = "".join(drawable(text).split())
    said = "".join("".join(found).split())
    assert said == whole or (said.endswith(ELLIPSIS) and whole.startswith(said[:-1]))


def test_a_word_without_end_takes_no_time() -> None:
    began = time.monotonic()
    found = lines("i" * 200_000, 160, 4)
    assert time.monotonic() - began < 2 and len(found) == 4 and found[-1].endswith(ELLIPSIS)


def test_the_sheet_has_room_for_the_longest_caption(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (64, 64), "blue").save(picture)

    def height(*captions: str, notes: tuple[str, ...] = ()) -> int:
        out = grid([("step 1", [picture] * len(captions))], captions, tmp_path / "grid.png", notes=notes)
        with Image.open(out) as sheet:
            column, ground = range(110, 110 + 168 * len(captions)), sheet.getpixel((0, 0))
            first_blue = next(y for y in range(sheet.height) if sheet.getpixel((111, y)) == (0, 0, 255))
            above = [sheet.getpixel((x, y)) for y in (0, first_blue - 2) for x in column]
            assert set(above) == {ground}  # no letter touches the edge or the picture
            return sheet.height

    one = height("cat", "dog")
    assert height("cat", LONG) == one + (MOST_LINES - 1) * LINE
    assert height("cat", LONG, notes=("8x8", "8x8")) == one + MOST_LINES * LINE
    assert height("") == one - LINE
