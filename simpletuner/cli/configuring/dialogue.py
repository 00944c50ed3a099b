"""Asks in a terminal, step by step. Decides nothing: every answer goes through ``answers``, every proposal through ``drafting``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import questionary

from simpletuner.cli.configuring import content, drafting, estimates, pictures
from simpletuner.cli.configuring.answers import answers
from simpletuner.cli.configuring.drafting import Draft
from simpletuner.cli.configuring.pictures import Pictures
from simpletuner.cli.configuring.proposal import POCKET, Machine
from simpletuner.config.catalogue import FLAVOURS
from simpletuner.config.examples import kinds
from simpletuner.errors import ConfigError, DataError, ModelError

Say = Callable[[str], None]
SOURCE = "your answers"
OTHER = "another: a folder or a hub id"
CARDS = {"this machine, on its CPU": 0, **{f"another, with a card of {size} GiB": size for size in (8, 12, 16, 24, 80)}}
CHOICES: Mapping[str, list[str]] = {
    "model": [POCKET, *FLAVOURS, OTHER],
    "method": ["full", "lora", "lokr"],
    "captions": ["textfile", "filename", "instanceprompt"],
    "mixed_precision": ["bf16", "no", "fp16"],
    "optimizer": ["optimi-adamw", "adamw_bf16", "torch-adamw", "adamw_schedulefree", "prodigy", "ao-adamw8bit"],
}
NUMBERS = ("resolution", "train_batch_size", "learning_rate", "max_train_steps")
CHANGES = ("validation_prompt", "validation_step_interval")


def converse(config: Path, aside: Path, say: Say) -> Draft:
    """The whole dialogue, up to a draft that a person takes. Raises KeyboardInterrupt on Ctrl-C."""
    said: dict[str, Any] = {"kind": _kind()}
    found = _pictures(said, say)
    said |= _names(said["kind"], say)
    machine = _machine(say)
    taken: tuple[dict[str, Any], Draft] | None = None
    while True:
        say("")
        try:
            made = drafting.draft(answers(said, SOURCE), found, machine, config.parent, aside, SOURCE, dialogue=True)
            taken = said, made
        except (ConfigError, ModelError) as error:
            say(str(error))
            if taken is None:
                said = {**said, **_one_change(said, {}, say)}
                continue
            say("So it stays as it was:")
        said, draft = taken
        _show(draft, say)
        changed = _change_or_take(said, draft, say)
        if changed is None:
            return draft
        said = {**said, **changed}


def _kind() -> str:
    return str(
        questionary.select(
            "What do you want to teach?",
            [questionary.Choice(f"{name}: {text}", name) for name, text in kinds().items()],
        ).unsafe_ask()
    )


def _names(kind: str, say: Say) -> dict[str, str]:
    """What the pictures show. The folder's name never stands for it here: nobody chose that for captions."""
    if kind != "subject":
        style = "Name the style in a few words:"
        words = _insisted(style if kind == "style" else "What do the pictures show, in a few words?", say)
        if not words:
            words = content.nameless(kind, "")
            say(f"Left empty, so prompts say {words!r}.")
        return {"words": words}
    what = _insisted("What kind of thing is it, in a word or two (dog, person, toy)?", say)
    usual = content.nameless(kind, what)
    called = _text("What is it called in prompts? A rare word that is to mean yours alone, and what it is:", usual)
    return {"what": what, "words": called or usual}


def _insisted(question: str, say: Say) -> str:
    """An answer, asked for once more where it is left empty; it may stay so."""
    answer = _text(question, "")
    if not answer:
        say("Prompts are made of this answer, and captions where no file has one: a word is enough.")
        answer = _text(question, "")
    return answer


def _pictures(said: dict[str, Any], say: Say) -> Pictures:
    """The folder, asked for until there is one with pictures."""
    default = pictures.only_folder(Path("datasets"))
    while True:
        # Not put into the line: a path typed there would stand behind it.
        question = f"Folder with the pictures (Enter for {default}):" if default else "Folder with the pictures:"
        folder = questionary.path(question, only_directories=True).unsafe_ask().strip() or default
        if not folder:
            say("Name a folder with pictures: its path, such as datasets/fox.")
            continue
        try:
            found = pictures.look(Path(folder))
        except DataError as error:
            default = default if folder != default else ""
            say(f"{error}. Name a folder with pictures.")
            continue
        for line in pictures.saw(found):
            say(line)
        said["pictures"] = folder
        return found


def _machine(say: Say) -> Machine:
    """The card of this machine, or the one that will train."""
    here = estimates.machine(None)
    if here.gib:
        say(f"Card: {here.name}, {here.gib:g} GiB free")
        return here
    size = questionary.select("This machine has no NVIDIA card. What will train?", list(CARDS)).unsafe_ask()
    return estimates.machine(float(CARDS[size]))


def _show(draft: Draft, say: Say) -> None:
    for line in ("Proposed:", *drafting.told(draft), *draft.notes, *draft.estimate):
        say(line)


def _change_or_take(said: Mapping[str, Any], draft: Draft, say: Say) -> dict[str, Any] | None:
    """What a person changes, or None where it is taken as it is."""
    take = "Take it"
    if questionary.select("Is that right?", [take, "Change something"]).unsafe_ask() == take:
        return None
    every = {**draft.proposal.choices, **drafting.pictured(draft.files)}
    return _one_change(said, {name: choice.value for name, choice in every.items()}, say)


def _one_change(said: Mapping[str, Any], values: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """One answer, asked for until it is a right one by itself; ``values`` is what is proposed, empty before anything is."""
    of_names = ("words", "what") if said["kind"] == "subject" else ("words",)
    proposed = list(values) or [*CHOICES, *NUMBERS, "output_dir", *CHANGES]  # nothing yet: all that is ever proposed
    names = [*proposed, *of_names]
    values = {**values, **{name: said.get(name, "") for name in of_names}}
    name = questionary.select("What?", names).unsafe_ask()
    while True:
        value = _value(name, values.get(name))
        if name == "words" and not value:
            value = content.nameless(said["kind"], str(said.get("what") or ""))
            say(f"Left empty, so prompts say {value!r}.")
        if name in values and value == drafting.shown(values[name]):
            return {}  # a plain Enter: it stays proposed, and follows other changes
        try:
            answers({**said, name: value}, SOURCE)
        except ConfigError as error:
            say(str(error))
            continue
        return {name: value}


def _value(name: str, now: Any) -> str:
    if name in CHOICES:
        listed = CHOICES[name]
        value = questionary.select(f"{name}:", listed, default=now if now in listed else None).unsafe_ask()
        if value != OTHER:
            return str(value)
    return _text(f"{name}:", "" if now is None else drafting.shown(now))


def _text(question: str, default: str) -> str:
    return str(questionary.text(question, default=default).unsafe_ask()).strip()


def agreed(question: str) -> bool:
    """Yes or no; no by default."""
    return bool(questionary.confirm(question, default=False).unsafe_ask())
