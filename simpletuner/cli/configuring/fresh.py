"""Whether a folder holds a run already, and a name that is free. A new run there would go on from the old one's weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from simpletuner.cli.configuring.content import CONFIG, DATASETS
from simpletuner.cli.configuring.proposal import Choice, Proposal

# What may differ while it stays the same run: its length, and what only looks at it.
_FREE = ("output_dir", "max_train_steps", "validation", "checkpoint", "user_prompt_library")


def holds_a_run(folder: Path) -> bool:
    """Whether anything was trained into a folder."""
    home = folder.expanduser()
    return (home / "run.json").is_file() or any(home.glob("checkpoint-*"))


def same_run(files: Mapping[str, Any], there: Path) -> str:
    """The output_dir of the configuration in the folder ``there`` if it trains the same by the same pictures and captions.

    Args:
        files: What is proposed, name → content.
        there: Where these files will lie.

    Returns:
        "" if it is another run, or no configuration lies there.
    """
    try:
        before = {name: json.loads((there / name).read_text(encoding="utf-8")) for name in (CONFIG, DATASETS)}
    except (OSError, ValueError):
        return ""
    old = before[CONFIG]
    if not isinstance(old, dict) or before[DATASETS] != files[DATASETS]:
        return ""
    return str(old.get("output_dir", "")) if _recipe(old) == _recipe(files[CONFIG]) else ""


def _recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith(_FREE)}


def placed(proposal: Proposal, same: str) -> Proposal:
    """The proposal with a folder of its own, unless a person named one or the run that is there is this one.

    Args:
        proposal: With the usual name.
        same: From ``same_run``.
    """
    choice = proposal.choices["output_dir"]
    if choice.asked:
        return proposal
    if same and holds_a_run(Path(same)):
        why = "it holds a run of these very settings: training goes on from there, up to max_train_steps"
        return _with(proposal, Choice(same, why))
    if not holds_a_run(Path(str(choice.value))):
        return proposal
    number = 2
    while holds_a_run(Path(f"{choice.value}-{number}")):
        number += 1
    why = f"{choice.value} holds a run with other settings, captions or pictures, whose weights would be trained on"
    return _with(proposal, Choice(f"{choice.value}-{number}", why))


def _with(proposal: Proposal, choice: Choice) -> Proposal:
    return replace(proposal, choices={**proposal.choices, "output_dir": choice})


def note(proposal: Proposal, same: str) -> str:
    """A sentence where a person named a folder with another run; "" where all is well."""
    choice = proposal.choices["output_dir"]
    named = Path(str(choice.value))
    if not choice.asked or not holds_a_run(named) or (same and Path(same) == named):
        return ""
    return (
        f"{named} holds a run already, with other settings, captions or pictures as it seems: training would go on "
        "from its weights. For a fresh run name another output_dir."
    )
