"""One picture is, two pictures are; and no message of the program puts a number before a bare plural."""

import errno
import os
import re
from pathlib import Path

import pytest

from simpletuner.data.cache import write_atomic
from simpletuner.errors import CacheError
from simpletuner.wording import counted, lasting, where_to_write

PACKAGE = Path(__file__).resolve().parents[2] / "simpletuner"
NOUNS = "pictures|steps|captions|files|latents|tensors|groups|blocks|distinct captions|cache files"


@pytest.mark.parametrize(("number", "said"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps"), (101, "101 steps")])
def test_the_noun_follows_the_number(number: int, said: str) -> None:
    assert counted(number, "step") == said
    assert counted(number, "picture is", "pictures are").endswith("is" if number == 1 else "are")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "1 second"), (4, "4 seconds"), (24, "20 seconds"), (89, "90 seconds"), (90, "2 minutes"), (160, "3 minutes"),
     (5400, "2 hours"), (40000, "11 hours")],
)  # fmt: skip
def test_times_are_said_as_a_person_says_them(seconds: float, said: str) -> None:
    assert lasting(seconds) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "free some space or choose another folder"),
        (errno.EROFS, "choose another folder that can be written to"),
        (errno.EACCES, "choose another folder that can be written to"),
    ],
)
def test_space_is_asked_for_where_it_helps(number: int, said: str) -> None:
    assert where_to_write(OSError(number, os.strerror(number))) == said


def test_what_cannot_be_written_says_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(CacheError, match=r"Read-only file system. What to do: choose another folder that can be writ"):
        write_atomic(tmp_path / "a", b"")


def test_messages_count_through_it() -> None:
    """Constants such as PATIENCE are never 1, and "n of m pictures" is no count of its own."""
    bare = re.compile(r"(?<! of )\{(?![A-Z_]+\}|[^{}]*counted)[^{}]*\} (" + NOUNS + r")\b")
    for module in PACKAGE.rglob("*.py"):
        for number, line in enumerate(module.read_text(encoding="utf-8").splitlines(), 1):
            found = bare.search(line.replace("pictures/s", ""))
            assert not found or "weights are trained" in line, f"{module.name}:{number}: {line.strip()}"
