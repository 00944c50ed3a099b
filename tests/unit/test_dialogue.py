"""The dialogue of `simpletuner configure`, question by question, at a keyboard that is a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from simpletuner.cli.configuring import dialogue
from simpletuner.cli.configuring.pictures import saw

Keys = Callable[[str], None]
ENTER, CLEAR = "\r", "\x01\x0b"


@pytest.fixture
def keys() -> Iterator[Keys]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe.send_text


def test_an_empty_answer_is_asked_for_again_and_is_never_the_folders_name(keys: Keys) -> None:
    said: list[str] = []
    keys(ENTER + "owl" + ENTER + ENTER)
    assert dialogue._names("subject", said.append) == {"what": "owl", "words": "sks owl"}
    assert said == ["Prompts are made of this answer, and captions where no file has one: a word is enough."]
    keys(ENTER * 3)
    assert dialogue._names("subject", said.append) == {"what": "", "words": "sks thing"}
    keys("owl" + ENTER + CLEAR + ENTER)
    assert dialogue._names("subject", said.append)["words"] == "sks owl", "nor is a name that was deleted"
    for kind, words in (("style", "sks"), ("domain", "a picture")):
        said.clear()
        keys(ENTER * 2)
        assert dialogue._names(kind, said.append) == {"words": words}
        assert said[1:] == [f"Left empty, so prompts say {words!r}."]


def test_an_answer_that_is_emptied_later_is_not_the_folders_name_either(keys: Keys) -> None:
    said: list[str] = []
    keys("\x1b[A" * 2 + ENTER + CLEAR + ENTER)  # the last but one: words
    answered = {"kind": "subject", "what": "owl", "words": "sks owlet", "pictures": "datasets/photos"}
    assert dialogue._one_change(answered, {"model": "pocket"}, said.append) == {"words": "sks owl"}
    assert said == ["Left empty, so prompts say 'sks owl'."]


def test_the_folder_is_asked_for_from_nothing_unless_there_is_one_to_propose(
    keys: Keys, pictures: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = pictures("elsewhere", count=2)
    (tmp_path / "datasets").mkdir()
    said: list[str] = []

    def asked(typed: str) -> str:
        answers: dict[str, object] = {}
        keys(typed)
        dialogue._pictures(answers, said.append)
        return str(answers["pictures"])

    assert asked(f"{elsewhere}{ENTER}") == str(elsewhere), "nothing stood there"
    assert asked(f"{ENTER}nowhere{ENTER}{elsewhere}{ENTER}") == str(elsewhere), "what was wrong is gone"
    assert said[-4].startswith("Name a folder") and said[-3].startswith("nowhere is no folder")
    pictures("datasets/fox", count=3)
    assert asked(ENTER) == "datasets/fox" and said[-2].startswith("3 pictures in datasets/fox")
    assert asked(f"{elsewhere}{ENTER}") == str(elsewhere)
    assert asked(f"elsewhere{ENTER}") == "elsewhere", "what is typed does not stand behind what is proposed"
    assert asked(f"nowhere{ENTER}{ENTER}") == "datasets/fox", "a wrong path leaves what is proposed"
    pictures("datasets/owl", count=1)
    assert asked(f"elsewhere{ENTER}") == "elsewhere", "of two folders neither is proposed"


def test_it_is_told_in_right_words_how_many_have_a_caption_file() -> None:
    from test_configure import folder_of

    def told(count: int) -> str:
        return saw(folder_of(*[(9, 9)] * 3, captions=count))[1]

    assert told(0) == "None has a caption file beside it"
    assert told(1) == "1 has a caption file beside it, such as 'caption 0'"
    assert told(3) == "3 have a caption file beside them, such as 'caption 0'"
