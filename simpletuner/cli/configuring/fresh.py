"""Whether a folder holds a run already, and a name that is free. A new run there would go on from the old one's weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from simpletuner.cli.configuring.content import CONFIG
from simpletuner.cli.configuring.proposal import Choice, Proposal
from simpletuner.config.own_output import holds_a_run
from simpletuner.config.read import RunConfig
from simpletuner.reporting.masking import masked

# What may differ while it stays the same run: its length, and the warm-up, which is proposed by it; what only looks at
# the run; and where its datasets are written down.
_LENGTH = ("max_train_steps", "lr_warmup_steps")
_FREE = ("output_dir", *_LENGTH, "validation", "checkpoint", "user_prompt_library", "data_backend_config")


def goes_on(config: RunConfig, folder: Path) -> bool:
    """Whether the run in ``folder`` was trained with these settings and datasets, by what it wrote down itself.

    Of pictures and captions only where they come from is written down, not what they were.
    """
    home = folder.expanduser()
    trained = _read(home / "config.resolved.json"), _read(home / "datasets.resolved.json")
    settings, datasets = json.loads(json.dumps([config.raw, masked(config.datasets.record())], default=str))
    return isinstance(trained[0], dict) and _recipe(trained[0]) == _recipe(settings) and trained[1] == datasets


def _read(file: Path) -> Any:
    """JSON, or None where there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith(_FREE)}


def placed(proposal: Proposal, config: RunConfig, there: Path) -> Proposal:
    """The proposal with a folder of its own, unless a person named one or a run that is there goes on with it.

    Args:
        proposal: With the usual name.
        config: The proposal as the program reads it.
        there: Where its files will lie. The output_dir of a configuration there may be a person's own choice.
    """
    choice = proposal.choices["output_dir"]
    if choice.asked:
        return proposal
    before = _read(there / CONFIG)
    own = before.get("output_dir") if isinstance(before, dict) else None
    if isinstance(own, str) and holds_a_run(Path(own)) and goes_on(config, Path(own)):
        return _onward(proposal, own)
    folder, number = str(choice.value), 1
    while holds_a_run(Path(folder)):
        if goes_on(config, Path(folder)):
            return _onward(proposal, folder)
        number += 1
        folder = f"{choice.value}-{number}"
    if number == 1:
        return proposal
    why = f"{choice.value} holds a run with other settings or another folder of pictures, whose weights would be trained on"
    return _with(proposal, Choice(folder, why))


def _onward(proposal: Proposal, folder: str) -> Proposal:
    why = (
        "it holds a run with these settings and the same folder of pictures: training goes on from there, up to "
        "max_train_steps; for changed pictures or captions name another output_dir"
    )
    return _with(proposal, Choice(folder, why))


def _with(proposal: Proposal, choice: Choice) -> Proposal:
    return replace(proposal, choices={**proposal.choices, "output_dir": choice})


def note(proposal: Proposal, config: RunConfig) -> str:
    """A sentence where a person named a folder with another run; "" where all is well."""
    choice = proposal.choices["output_dir"]
    named = Path(str(choice.value))
    if not choice.asked or not holds_a_run(named) or goes_on(config, named):
        return ""
    return (
        f"{named} holds a run already, with other settings or another folder of pictures: training would go on from "
        "its weights. For a fresh run name another output_dir."
    )
