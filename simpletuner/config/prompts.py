"""Prompts of the validation pictures: the main prompt, the user's library, the built-in one, and the empty prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simpletuner.config.checking import Findings
from simpletuner.config.files import copied
from simpletuner.config.options import Options
from simpletuner.config.prompt_library import LIBRARY
from simpletuner.errors import ConfigError, Problem

MAIN, EMPTY = "validation", "unconditional"
_TEXT = ("prompt", "caption", "tags")
_STRENGTH = "adapter_strength"


@dataclass(slots=True)
class Prompts:
    """What is drawn.

    Attributes:
        texts: Nickname → prompt, in order.
        strengths: Nickname → the adapter's strength, for those that have one of their own.
    """

    texts: dict[str, str] = field(default_factory=dict)
    strengths: dict[str, float] = field(default_factory=dict)


def gather(options: Options, where: Mapping[str, str], read_file: Callable[[Path], Any], findings: Findings) -> Prompts:
    """All prompts: the main one first, the empty one last.

    Args:
        options: All options.
        where: The file each key came from.
        read_file: Parses a JSON file; raises ConfigError.
        findings: Added to.
    """
    chosen, prompts = options.validation, Prompts()
    if chosen.validation_prompt:
        prompts.texts[MAIN] = chosen.validation_prompt
    if chosen.user_prompt_library is not None:
        _library(chosen.user_prompt_library.expanduser(), where["user_prompt_library"], read_file, prompts, findings)
    if chosen.validation_prompt_library:
        for nickname, text in LIBRARY.items():
            prompts.texts.setdefault(nickname, text)  # the user's own prompt of that name stands for it
    if not chosen.validation_disable_unconditional:
        prompts.texts.setdefault(EMPTY, "")
    if prompts.strengths and options.model.model_type == "full":
        findings.notices.append(passed_over(prompts.strengths, "this run (model_type full)"))
    return prompts


def passed_over(strengths: Mapping[str, float], what: str) -> str:
    """The sentence about prompts with an adapter's strength, for ``what`` has no adapter.

    It is no refusal, as an option would be: the same library may draw with an adapter and with the model under it.
    """
    names = ", ".join(strengths)
    return f"{_STRENGTH} ({names}) changes nothing: it acts on an adapter, and {what} has none"


def of_file(file: Path, read_file: Callable[[Path], Any]) -> tuple[Prompts, list[str]]:
    """The prompts of a library's file, and sentences about fields that mean nothing.

    Raises:
        ConfigError: There is no such file, or it is no library; all of it at once.
    """
    prompts, findings = Prompts(), Findings()
    if not file.expanduser().is_file():
        raise ConfigError([Problem("command line", "--prompts", str(file), "there is no such file", "check the path")])
    _library(file.expanduser(), str(file), read_file, prompts, findings)
    if findings.problems:
        raise ConfigError(findings.problems)
    return prompts, findings.notices


def _library(file: Path, where: str, read_file: Callable[[Path], Any], prompts: Prompts, findings: Findings) -> None:
    """The user's own prompts."""
    if not file.is_file():
        start = copied(file) or "`simpletuner examples copy sana FOLDER`"
        remedy = f"{start} writes one to start from; or leave it out"
        findings.problems.append(Problem(where, "user_prompt_library", str(file), "there is no such file", remedy))
        return
    try:
        content = read_file(file)
    except ConfigError as error:
        findings.problems.extend(error.problems)
        return
    if not isinstance(content, Mapping):
        findings.problems.append(Problem(str(file), "", type(content).__name__, 'it must be {"nickname": "prompt"}'))
        return
    for nickname, value in content.items():
        if nickname in prompts.texts:
            reason = "this nickname is taken by validation_prompt"
            findings.problems.append(Problem(str(file), nickname, value, reason, "rename it"))
        else:
            _entry(str(file), nickname, value, prompts, findings)


def _entry(file: str, nickname: str, value: Any, prompts: Prompts, findings: Findings) -> None:
    """One line of a library: text, or an object."""
    fields = dict(value) if isinstance(value, Mapping) else {"prompt": value}
    texts = [(key, fields.pop(key)) for key in _TEXT if key in fields]
    if len(texts) > 1:
        names = " and ".join(key for key, _ in texts)
        findings.problems.append(Problem(file, nickname, value, f"it has {names}, which are the same", "keep one"))
        return
    text = texts[0][1] if texts else None
    if texts and texts[0][0] == "tags" and isinstance(text, list) and all(isinstance(tag, str) for tag in text):
        text = ", ".join(text)
    if not isinstance(text, str):
        findings.problems.append(Problem(file, nickname, value, "a prompt must be text"))
        return
    strength = fields.pop(_STRENGTH, None)
    if strength is not None:
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength < float("inf"):
            remedy = "0 is the base model, 1 the adapter as trained"
            findings.problems.append(
                Problem(file, f"{nickname}.{_STRENGTH}", strength, "it must be a number of 0 or more", remedy)
            )
            return
        prompts.strengths[nickname] = float(strength)
    if fields:
        known = ", ".join((*_TEXT, _STRENGTH))
        findings.notices.append(
            f"{Path(file).name}: {nickname} has {', '.join(map(str, fields))}, which means nothing here; known are {known}"
        )
    prompts.texts[nickname] = text
