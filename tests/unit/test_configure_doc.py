"""docs/configure.md says what is so."""

import json
import re
from pathlib import Path

from simpletuner.cli.configuring import content, proposal
from simpletuner.cli.configuring.answers import Answers, answers

DOC = (Path(__file__).resolve().parents[2] / "docs" / "configure.md").read_text(encoding="utf-8")


def test_its_answers_are_all_there_are_and_right() -> None:
    (block,) = re.findall(r"```json\n(.*?)```", DOC, re.DOTALL)
    values = json.loads(block)
    assert values.keys() == Answers.model_fields.keys()
    assert answers(values, "doc").card == 12


def test_it_names_files_and_figures() -> None:
    for name in (content.CONFIG, content.DATASETS, content.PROMPTS, content.LYCORIS):
        assert f"`config/{name}`" in DOC
    assert f"more than {proposal.MOST_VIEWS} times" in DOC
