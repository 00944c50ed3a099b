"""Names of validation pictures: any nickname is a file of its own in the very folder, on every file system."""

import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.data.types import Size
from simpletuner.evaluation.naming import file_names
from simpletuner.evaluation.pictures import ValidationSettings
from simpletuner.evaluation.validation import Validator
from simpletuner.models.base import EncodedText

NASTY = [
    "anime_<token>", "a/b", "a\\b", "../x", "..", ".", "", " ", "\x00", "\n", "a:b", "a|b?*\"", "~root", "-rf", "$HOME",
    "CON", "nul.txt", "Cat", "cat", "CAT", "cat_2", "ｃａｔ", "größe", "猫", "🦊", "x" * 300, "x" * 299, "x." * 100, "trailing.",
    "trailing ", "%2e%2e", "\u202egnp", "\ud800",
]  # fmt: skip
LONGEST = 255  # bytes of a file name on ext4, APFS (characters there) and NTFS (characters)


def validator(nicknames: list[str], folder: Path) -> Validator:
    settings = ValidationSettings(
        prompts=tuple((nick, "a fox") for nick in nicknames),
        negative_prompt="",
        guidance=1.0,
        steps=1,
        sizes=(Size(1024, 1024), Size(1024, 768)),
        images_per_prompt=2,
        seed=0,
    )
    nothing = EncodedText(torch.zeros(1, 1, 1), torch.ones(1, 1))
    return Validator(None, settings, lambda prompt, with_instruction: nothing, folder, torch.device("cpu"))


def check(nicknames: list[str]) -> None:
    names = file_names(nicknames)
    assert list(names) == nicknames
    for name in names.values():
        assert name and name not in (".", "..") and name[0] not in ".-~ " and len(name) <= 120
        assert not set(name) & set('/\\:*?"<>|$%\0 ') and name.isprintable()
    # Neither do file systems that know no case, or that compose letters, take two for one.
    folded = [unicodedata.normalize("NFC", name).lower() for name in names.values()]
    assert len(set(folded)) == len(folded)


@given(st.lists(st.text(max_size=100) | st.sampled_from(NASTY), unique=True, max_size=12))
def test_any_nicknames_give_safe_and_distinct_names(nicknames: list[str]) -> None:
    check(nicknames)


def test_nasty_nicknames_all_together() -> None:
    check(NASTY)


@given(st.lists(st.sampled_from(["a", "a_2", "a_2_2", "A", "a ", "<a>", "a_3", "a/2"]), unique=True))
def test_numbered_names_do_not_collide_with_given_ones(nicknames: list[str]) -> None:
    check(nicknames)


def test_a_plain_nickname_stays_as_it_is() -> None:
    assert file_names(["fox", "größe", "anime_<token>"]) == {
        "fox": "fox",
        "größe": "größe",
        "anime_<token>": "anime_token",
    }


def test_composed_and_decomposed_letters_do_not_collide() -> None:
    check(["가", unicodedata.normalize("NFD", "가")])


@pytest.mark.parametrize("nickname", [*NASTY, "猫" * 300, "🦊" * 300, "𠀀" * 300])
def test_every_picture_can_be_written_into_its_folder(tmp_path: Path, nickname: str) -> None:
    drawn = validator([nickname, "other"], tmp_path).expected(1_000_000, "ema")
    assert len({picture.path for picture in drawn}) == 2 * 2 * 2
    for picture in drawn:
        assert picture.path.parent == tmp_path and picture.path.suffix == ".png"
        assert len(picture.path.name.encode()) <= LONGEST
        picture.path.with_suffix(".tmp").write_bytes(b"")  # as while it is written
        picture.path.with_suffix(".tmp").replace(picture.path)
    assert len(list(tmp_path.iterdir())) == len(drawn)


def test_steps_labels_and_prompts_never_share_a_file(tmp_path: Path) -> None:
    several = validator(["a", "a_0", "a_ema", "step_1_a"], tmp_path)
    paths = [p.path for step in (1, 11) for label in ("", "ema") for p in several.expected(step, label)]
    assert len(set(paths)) == len(paths) == 4 * several.count
