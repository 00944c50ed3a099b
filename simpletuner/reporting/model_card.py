"""The README of a published model: what it is, pictures, how to use it, how it was trained, whose licence it is under.

In: a run's output folder, read by ``run_folder``. Out: Markdown with the hub's metadata. Names no folder of the machine it
was trained on, no caption, and no secret. Uploads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from simpletuner.reporting.masking import masked_text
from simpletuner.reporting.report import what_was_trained
from simpletuner.reporting.run_folder import RunFolder, Shot
from simpletuner.reporting.settings import Group, changed_settings
from simpletuner.wording import counted

MOST_SAMPLES = 12
USAGE = "usage.py"
_LEFT_OUT = {
    "Output and checkpoints",
    "Webhooks and trackers",
    "Dashboard and report",
    "Publishing on the hub",
    "Other",
}
_SANA = re.compile(r"(Efficient-Large-Model/sana|terminusresearch/sana)", re.IGNORECASE)
_NOBODY_ELSE_HAS_IT = 'from_pretrained("path/to/the/base/model"'
_LETTERS = r'(?:[^"\\\n]|\\.)*'  # of a text as json.dumps writes it
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Source: the model cards of the Efficient-Large-Model repositories, "License".
_GEMMA = "https://ai.google.dev/gemma/terms"
_NVIDIA_NAME = "nscl-v2-custom"


@dataclass(frozen=True, slots=True)
class Words:
    """What the publisher says.

    Attributes:
        note: A paragraph, or empty.
        safe: Pictures are for all audiences.
    """

    note: str = ""
    safe: bool = False


def samples(shots: Sequence[Shot]) -> list[Shot]:
    """Pictures of the newest step, one of each prompt: EMA ones where there are any, as these weights are published."""
    newest = max((shot.step for shot in shots), default=0)
    found: dict[str, Shot] = {}
    for shot in (s for s in shots if s.step == newest and newest):
        if shot.nickname not in found or (shot.label == "ema" and found[shot.nickname].label != "ema"):
            found[shot.nickname] = shot
    return list(found.values())[:MOST_SAMPLES]


def base_of(config: Mapping[str, Any]) -> str | None:
    """The base model's hub id, or None where it was a folder."""
    name = str(config.get("pretrained_model_name_or_path") or "")
    return name if _HUB_ID.fullmatch(name) and not Path(name).is_dir() and not name.startswith(".") else None


def card(folder: RunFolder, groups: Sequence[Group], repository: str, words: Words) -> str:
    """The whole README.

    Args:
        folder: A run that was refreshed.
        groups: Options by section with their defaults, to tell what was changed.
        repository: ``owner/name``.
        words: The publisher's own.
    """
    config, shots = folder.config(), samples(folder.shots())
    adapter = config.get("model_type") == "lora"
    name = repository.rpartition("/")[2]
    parts = [
        f"# {name}",
        f"{_plain(what_was_trained(config))} Trained with SimpleTuner for Sana.",
        _plain(words.note),
        _pictures(shots),
        _usage(folder.root, repository, config),
        _training(folder, config, groups),
        _data(folder.dataset()),
        _licence(base_of(config), adapter),
    ]
    return f"---\n{_metadata(config, shots, words)}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def _plain(text: str) -> str:
    """Words without secrets, and without markup that would act on the page."""
    return escape(masked_text(text), quote=False).replace("|", "\\|")


def _metadata(config: Mapping[str, Any], shots: Sequence[Shot], words: Words) -> str:
    from huggingface_hub import ModelCardData

    base, adapter = base_of(config), config.get("model_type") == "lora"
    kind = (
        [str(config.get("lora_type", "standard")).replace("standard", "lora"), "template:sd-lora"]
        if adapter
        else ["full"]
    )
    tags = [
        "text-to-image",
        "diffusers",
        "sana",
        "simpletuner",
        *kind,
        *([] if words.safe else ["not-for-all-audiences"]),
    ]
    widget = [{"text": shot.prompt or " ", "output": {"url": f"samples/{Path(shot.path).name}"}} for shot in shots]
    more: dict[str, Any] = {"license": "other"}
    if base:
        more["base_model_relation"] = "adapter" if adapter else "finetune"
    if base and _SANA.match(base):
        more |= {"license_name": _NVIDIA_NAME, "license_link": f"https://huggingface.co/{base}"}
    if widget:
        more["widget"] = widget
    data = ModelCardData(library_name="diffusers", pipeline_tag="text-to-image", base_model=base, tags=tags, **more)
    return data.to_yaml()


def _pictures(shots: Sequence[Shot]) -> str:
    """Each with its prompt."""
    if not shots:
        return ""
    rows = [
        f"| ![{_word(shot.nickname)}](samples/{Path(shot.path).name}) | {_plain(_line(shot.prompt)) or '*no prompt*'} |"
        for shot in shots
    ]
    return "\n".join(
        [f"## Pictures after {counted(shots[0].step, 'step')}", "", "| picture | prompt |", "|---|---|", *rows]
    )


def _word(text: str) -> str:
    return re.sub(r"[^\w -]+", " ", text).strip()


def _line(text: str) -> str:
    return " ".join(text.split())


def usage(text: str, repository: str, base_is_local: bool) -> str:
    """The lines that a run ends with, for somebody who has none of its folders.

    Args:
        text: Of ``usage.py``.
        repository: ``owner/name``.
        base_is_local: The base model was a folder, which nobody else has.
    """
    name = f'"{repository}"'
    if "load_lora_weights(" not in text and "lycoris.create" not in text:  # a base model may end in /pipeline as well
        text = re.sub(rf'"{_LETTERS}(?:/|\\\\)pipeline"', name, text)
    weights = rf'"{_LETTERS}pytorch_lora_weights\.safetensors"'
    if "lycoris.create" in text:
        fetched = f'hf_hub_download({name}, "pytorch_lora_weights.safetensors")'
        text = re.sub(weights, fetched, text).replace(
            "import torch\n", "import torch\nfrom huggingface_hub import hf_hub_download\n", 1
        )
    else:
        text = re.sub(weights, name, text)
    text = re.sub(
        r"# first, in a shell: simpletuner convert-adapter .*",
        f"# first, in a shell: hf download {repository} pytorch_lora_weights.safetensors --local-dir .\n"
        "# and: simpletuner convert-adapter pytorch_lora_weights.safetensors diffusers.safetensors",
        text,
    )
    text = re.sub(rf'image\.save\("{_LETTERS}"\)', 'image.save("image.png")', text)
    text = re.sub(rf'from_pretrained\("(?:/|\\\\|[A-Za-z]:[/\\]){_LETTERS}"', _NOBODY_ELSE_HAS_IT, text)
    if base_is_local:
        other = re.escape(name)
        text = re.sub(rf'from_pretrained\((?!{other})"{_LETTERS}"', _NOBODY_ELSE_HAS_IT, text)
    return text


def _usage(root: Path, repository: str, config: Mapping[str, Any]) -> str:
    try:
        text = (root / USAGE).read_text(encoding="utf-8")
    except OSError:
        return ""
    return f"## Use\n\n```python\n{usage(text, repository, base_of(config) is None).strip()}\n```"


def _training(folder: RunFolder, config: Mapping[str, Any], groups: Sequence[Group]) -> str:
    """Steps, held-out loss, and the settings that are not the default."""
    steps = folder.series.steps[-1] if folder.series.steps else 0
    lines = ["## Training", "", f"- {counted(steps, 'step')}"]
    held_out = [e for e in folder.series.evals if e.get("kind") == "eval" and isinstance(e.get("loss"), int | float)]
    if len(held_out) > 1:
        first, last = held_out[0]["loss"], held_out[-1]["loss"]
        lines.append(f"- held-out loss {first:.4f} before, {last:.4f} after")
    rows = [
        f"| `{key}` | {_plain(_line(value))} |"
        for group in changed_settings(config, groups)
        if group.title not in _LEFT_OUT
        for key, value, changed in group.rows
        if changed and not _is_private(key, value)
    ]
    if rows:
        lines += ["", "Settings that are not the default:", "", "| option | value |", "|---|---|", *rows]
    return "\n".join(lines)


def _is_private(key: str, value: str) -> bool:
    """Whether a setting is a place on the machine, which is nobody's business: a hub id is none."""
    if key.startswith("validation_prompt") or key in ("instance_prompt", "validation_negative_prompt"):
        return False
    if key.startswith("pretrained_") and _HUB_ID.fullmatch(value) and not Path(value).is_dir():
        return False
    return "/" in value or "\\" in value or key.endswith(("_dir", "_config")) or "cache_dir" in key


def _data(sheet: Mapping[str, Any]) -> str:
    """How many pictures, by dataset and shape; nothing of the pictures themselves."""
    entries = [entry for entry in sheet.get("datasets", []) if isinstance(entry, dict)]
    if not entries:
        return ""
    rows = []
    for entry in entries:
        shapes = ", ".join(f"{size} ({count})" for size, count in entry.get("buckets", [])[:6])
        more = " …" if len(entry.get("buckets", [])) > 6 else ""
        rows.append(f"| {_plain(str(entry.get('id', '')))} | {entry.get('used', '?')} | {shapes}{more} |")
    return "\n".join(["## Data", "", "| dataset | pictures | sizes in pixels |", "|---|---|---|", *rows])


def _licence(base: str | None, adapter: bool) -> str:
    """Whose terms hold."""
    head = "## Licence\n\n"
    if base is None or not _SANA.match(base):
        named = f"[{base}](https://huggingface.co/{base})" if base else "the base model"
        return f"{head}These weights come from {named}: its licence holds for them."
    gemma = "" if adapter else f" The text encoder is Gemma 2: its [terms of use]({_GEMMA}) hold for it."
    return (
        f"{head}These weights come from [{base}](https://huggingface.co/{base}): NVIDIA's licence of Sana (NSCL v2-custom, see "
        f"LICENSE.txt there) holds for them.{gemma}"
    )
