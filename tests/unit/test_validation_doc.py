"""docs/validation.md: its blocks are read without a problem, and it names every option of pictures and held-out loss."""

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT

from simpletuner.config.options import ValidationOptions
from simpletuner.config.prompts import MAIN
from simpletuner.config.read import load
from simpletuner.config.validation_options import EvaluationOptions

TEXT = (ROOT / "docs" / "validation.md").read_text(encoding="utf-8")
OPTIONS, LIBRARY = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, flags=re.S))


def test_the_blocks_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("config", "pictures"):
        (tmp_path / name).mkdir()
    (tmp_path / "config" / "user_prompt_library.json").write_text(json.dumps(LIBRARY))
    entries = [{"id": "a", "instance_data_dir": "pictures"}, {"id": "t", "dataset_type": "text_embeds"}]
    (tmp_path / "config" / "multidatabackend.json").write_text(json.dumps(entries))
    adapter = {"model_type": "lora", "max_train_steps": 5, "model_flavour": "sana1.0-1.6b-1024"}
    (tmp_path / "config" / "config.json").write_text(json.dumps({**OPTIONS, **adapter}))
    config = load(environ={})
    assert not [notice for notice in config.notices if not notice.startswith("pretrained_model_name_or_path")]
    prompts = dict(config.prompts)
    assert next(iter(prompts)) == MAIN and set(LIBRARY) < set(prompts) and config.strengths == {"base": 0.0}
    assert prompts["tagged"] == "<token>, close-up, oil painting"


@pytest.mark.parametrize("option", [*ValidationOptions.model_fields, *EvaluationOptions.model_fields])
def test_every_option_is_named(option: str) -> None:
    assert option in TEXT or option == "validation_disable"
