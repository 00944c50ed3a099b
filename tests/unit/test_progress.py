"""Sentences and bars: broken between words in a terminal, as they are elsewhere."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from simpletuner.reporting import progress
from simpletuner.reporting.progress import Reporter
from simpletuner.reporting.wrapping import wrapped

WORDS = st.lists(st.text("abcé漢字[]", min_size=1, max_size=30), min_size=1, max_size=30)


@settings(max_examples=40)
@given(WORDS, st.integers(0, 6), st.sampled_from(["", "name  ", "two words   "]), st.integers(20, 120))
def test_every_word_stays_whole_and_no_line_is_too_long(words: list[str], lead: int, name: str, width: int) -> None:
    text = " " * lead + name + " ".join(words)
    lines = wrapped(text, width).split("\n")
    assert " ".join(lines).split() == text.split()
    assert lines[0].startswith(" " * lead + name.rstrip()) or width < 30 + len(name) + lead + 2
    for line in lines:
        assert cell_len(line) <= width or len(line.split()) <= 1 + (line is lines[0]) * len(name.split()), line
    if cell_len(text) <= width:
        assert lines == [text]


def test_what_goes_on_begins_under_what_was_said() -> None:
    text = "  resolution        128: what the model was made for, and 64 as well\n[set] a sentence of its own"
    assert wrapped(text, 50).split("\n") == [
        "  resolution        128: what the model was made",
        "                    for, and 64 as well",
        "[set] a sentence of its own",
    ]
    assert wrapped("  one sentence that is as long as this one is", 36).split("\n") == [
        "  one sentence that is as long as",
        "    this one is",
    ]


def test_a_terminal_gets_whole_words_a_pipe_and_code_whole_lines() -> None:
    text = "word " * 40 + "[bold]:dog:end"
    for terminal, whole, count in ((True, False, 4), (True, True, 1), (False, False, 1)):
        screen = StringIO()
        Reporter(Console(file=screen, width=60, force_terminal=terminal)).say(text.rstrip(), whole=whole)
        assert len(screen.getvalue().rstrip("\n").split("\n")) == count, (terminal, whole)
        assert "[bold]:dog:end" in screen.getvalue(), "no markup and no emoji is made of a prompt"


def test_a_bar_names_its_dataset_and_says_which_time_is_which() -> None:
    screen = StringIO()
    reporter = Reporter(Console(file=screen, width=120, force_terminal=True, color_system=None))
    with reporter.bar("Looking at pictures [fox]", 4) as bar:
        bar.advance(4)
    assert "Looking at pictures [fox]" in screen.getvalue()
    last = [line for line in screen.getvalue().splitlines() if "4/4" in line][-1]
    assert " in 0:00:0" in last and "left" not in last, "nothing is left of what is finished"


@pytest.mark.parametrize("width", [80, 100, 140])
def test_nothing_of_a_bar_is_cut_for_its_note(width: int) -> None:
    screen, note = StringIO(), "smoothed loss 1.114  lr 1.00e-03  90.8 pictures/s"
    with Reporter(Console(file=screen, width=width, force_terminal=True, color_system=None)).bar(
        "Training", 400
    ) as bar:
        bar.advance(89, note)
    said = screen.getvalue()
    assert "…" not in said and " 89/400" in said and "left" in said
    assert all(word in said for word in note.split())


def test_a_plain_bar_says_how_long_the_rest_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    screen = StringIO()
    with Reporter(Console(file=screen)).bar("Training", 400, done=100) as bar:
        for at, count in ((40.0, 1), (60.0, 99), (100.0, 200)):
            now[0] = at
            bar.advance(count, "loss 0.5")
    said: Any = screen.getvalue().splitlines()
    assert said == [
        "Training 101/400 (40 s) loss 0.5",  # that compiled, and tells nothing of the others
        "Training 200/400 (60 s, about 40 s left) loss 0.5",
        "Training 400/400 (100 s) loss 0.5",
    ]
