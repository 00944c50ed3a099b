from pathlib import Path

import pytest

from simpletuner.data.captions import CaptionRules, Shuffle, captions_for
from simpletuner.errors import DataError


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("a_red_house.png", "a red house"),
        ("IMG-0042_v1.2_final.jpeg", "IMG-0042 v1.2 final"),
        ("über_größe.webp", "über größe"),
    ],
)
def test_filename_is_the_stem_with_spaces(name: str, caption: str) -> None:
    assert captions_for(Path("folder_x") / name, CaptionRules("filename")) == (caption,)


@pytest.mark.parametrize(
    ("content", "captions"),
    [
        (b"a cat\n", ("a cat",)),
        (b"\xef\xbb\xbfa cat", ("a cat",)),
        (b"a cat\r\n\r\n  a dog \r\n", ("a cat", "a dog")),
        (b"old mac\rlines", ("old mac", "lines")),
        ("größe – 猫".encode(), ("größe – 猫",)),
        ("one\u2028caption\x0bstill".encode(), ("one\u2028caption\x0bstill",)),
        (b"", ("",)),
        (b"\n \n", ("",)),
    ],
)
def test_lines_of_the_text_file_are_alternatives(tmp_path: Path, content: bytes, captions: tuple[str, ...]) -> None:
    (tmp_path / "x.y.txt").write_bytes(content)
    assert captions_for(tmp_path / "x.y.png", CaptionRules("textfile")) == captions


def test_a_missing_text_file_names_picture_and_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^it has no caption: cat\.txt does not exist"):
        captions_for(tmp_path / "cat.png", CaptionRules("textfile"))


def test_a_text_file_that_is_no_utf8_says_so(tmp_path: Path) -> None:
    (tmp_path / "cat.txt").write_bytes("größe".encode("latin-1"))
    with pytest.raises(DataError, match=r"^its caption, cat\.txt, is not UTF-8"):
        captions_for(tmp_path / "cat.png", CaptionRules("textfile"))


def test_a_folder_in_place_of_the_text_file(tmp_path: Path) -> None:
    (tmp_path / "cat.txt").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        captions_for(tmp_path / "cat.png", CaptionRules("textfile"))


def test_instance_prompts() -> None:
    path = Path("a_cat.png")
    two = ("photo of sks", "sks")
    assert captions_for(path, CaptionRules("instanceprompt", two)) == two
    assert captions_for(path, CaptionRules("textfile", two, only_instance_prompt=True)) == two
    assert captions_for(path, CaptionRules("filename", two, prepend_instance_prompt=True)) == (
        "photo of sks a cat",
        "sks a cat",
    )


@pytest.mark.parametrize("flag", ["prepend_instance_prompt", "only_instance_prompt"])
def test_rules_without_the_prompt_they_need_are_refused(flag: str) -> None:
    with pytest.raises(DataError, match="instance_prompt"):
        CaptionRules("filename", (), **{flag: True})
    with pytest.raises(DataError, match="instance_prompt"):
        CaptionRules("instanceprompt")


def test_the_filter_list_removes_text_patterns_and_substitutes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a photo (1) of [cat], masterpiece 4k\n")
    rules = CaptionRules("textfile", remove=("(1) ", "s/cat/dog/", r", masterpiece \d+k", "[", "s/photo/drawing"))
    assert captions_for(tmp_path / "a.png", rules) == ("a drawing of dog]",)


def test_shuffled_captions_keep_their_parts_and_their_head(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("sks cat, red, blue, green, white\n")
    rules = CaptionRules("textfile", shuffle=Shuffle(count=3, position_start=1))
    found = captions_for(tmp_path / "a.png", rules)
    assert found == captions_for(tmp_path / "a.png", rules) and len(found) == 4
    assert found[0] == "sks cat, red, blue, green, white"
    for caption in found:
        head, *parts = caption.split(", ")
        assert head == "sks cat" and sorted(parts) == ["blue", "green", "red", "white"]
    alone = CaptionRules("textfile", shuffle=Shuffle(include_original=False, split_on="space", seed=3))
    (only,) = captions_for(tmp_path / "a.png", alone)
    assert sorted(only.split()) == sorted(["sks", "cat,", "red,", "blue,", "green,", "white"])


def test_a_whole_file_is_one_caption_and_null_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first line\nsecond line\n")
    assert captions_for(tmp_path / "a.png", CaptionRules("textfile", whole_file=True)) == ("first line second line",)
    assert captions_for(tmp_path / "a.png", CaptionRules("null")) == ("",)
