"""Every JSON block of the documentation, README included, is read by the program's own readers without a problem."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from pages import Block, blocks

from simpletuner.cli.configuring.answers import answers
from simpletuner.config import lycoris
from simpletuner.config.checking import Findings
from simpletuner.config.options import section_of
from simpletuner.config.read import RunConfig, load
from simpletuner.config.webhooks import webhooks

BLOCKS = list(blocks("json"))
ENVIRON = {"S3_KEY": "key", "S3_SECRET": "secret", "HOOK_TOKEN": "token", "DISCORD_HOOK": "hook", "HF_TOKEN": "token"}
# What an example of a few keys leaves to the reader: where there is nothing of it in the block, this stands in.
REST: Mapping[str, Any] = {"pretrained_model_name_or_path": "owner/sana", "max_train_steps": 10, "model_type": "lora",
                               "validation_prompt": "a prompt"}  # fmt: skip
ENTRIES = [{"id": "a", "instance_data_dir": "pictures"}, {"id": "t", "dataset_type": "text_embeds"}]
SAID = ("pretrained_model_name_or_path", "seed")  # derived values, which are always told


def kind_of(block: Block, content: Any) -> str:
    """What a block is: by its comment, else by its keys."""
    if block.mark.startswith("json: "):
        return block.mark.removeprefix("json: ")
    first = content[0] if isinstance(content, list) else content
    for key, kind in (("webhook_type", "webhooks"), ("id", "datasets"), ("algo", "lycoris"), ("kind", "answers")):
        if key in first:
            return kind
    keys = {key.lstrip("-") for key in first}
    if keys <= set(section_of()):
        return "options"
    raise AssertionError(f"{block}: what is this? Keys {sorted(keys - set(section_of()))} are no options")


def read(folder: Path, options: Mapping[str, Any], entries: list[dict[str, Any]]) -> RunConfig:
    """The program's own reader on these two files, with every folder and file that they name made."""
    config = folder / "config"
    config.mkdir(exist_ok=True)
    for entry in entries:
        place = entry.get("instance_data_dir", "")
        if place and "://" not in place and "{example" not in place:
            (folder / place).mkdir(parents=True, exist_ok=True)
        for file in (entry.get("csv_file"), entry.get("parquet", {}).get("path")):
            if file:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_text("filename,caption\n")
    library = next((value for key, value in options.items() if key.lstrip("-") == "user_prompt_library"), "")
    if library and "{" not in library:
        (folder / library).write_text('{"nickname": "a prompt"}')
    (config / "multidatabackend.json").write_text(json.dumps(entries))
    (config / "config.json").write_text(json.dumps(options))
    return load(environ=ENVIRON)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_it_is_read(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read as by somebody who is logged in; nothing is asked
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    content = json.loads(block.text)
    kind = kind_of(block, content)
    findings = Findings()
    if kind == "webhooks":
        text = block.text
        for name, value in ENVIRON.items():
            text = text.replace(f"{{env:{name}}}", value)
        assert webhooks(json.loads(text), str(block), findings)
    elif kind == "lycoris":
        assert not list(lycoris.problems(content)) and not list(lycoris.notices(content))
    elif kind == "prompt library":
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "library.json").write_text(block.text)
        options = {**REST, "user_prompt_library": "library-in-place.json"}
        (tmp_path / "library-in-place.json").write_text(block.text)
        (tmp_path / "pictures").mkdir()
        (tmp_path / "config" / "multidatabackend.json").write_text(json.dumps(ENTRIES))
        (tmp_path / "config" / "config.json").write_text(json.dumps(options))
        assert set(content) <= set(dict(load(environ={}).prompts))
    elif kind == "answers":
        assert answers(content, str(block))
    elif kind == "datasets":
        config = read(tmp_path, REST, content)
        made = (*config.datasets.train, *config.datasets.eval, *config.datasets.masks)
        assert len(made) + (config.datasets.text_embeds is not None) == len(content)
        assert not config.notices or block.mark == "notices"
    elif kind == "options":
        config = read(tmp_path, {**REST, **{key.lstrip("-"): value for key, value in content.items()}}, ENTRIES)
        assert not [line for line in config.notices if not line.startswith(SAID)] or block.mark == "notices"
    else:
        assert kind in ("metrics", "events"), f"{block}: {kind!r} is no kind that is known"
    assert not findings.problems and not findings.notices


def test_there_are_blocks_of_every_kind() -> None:
    kinds = {kind_of(block, json.loads(block.text)) for block in BLOCKS}
    assert {"options", "datasets", "webhooks", "lycoris", "prompt library"} <= kinds
    assert {block.page for block in BLOCKS} >= {"docs/quickstart.md", "docs/es/guia.md", "docs/datasets.md"}
