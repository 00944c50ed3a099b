"""Joins the parts: answers and facts become a draft, whose files the program has read and found right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.cli.configuring import content, estimates, fresh
from simpletuner.cli.configuring.answers import Answers
from simpletuner.cli.configuring.estimates import Model
from simpletuner.cli.configuring.pictures import Pictures
from simpletuner.cli.configuring.proposal import SETTINGS, Choice, Machine, Proposal, captions, model, problems, propose
from simpletuner.config.read import RunConfig
from simpletuner.errors import ConfigError, ModelError, Problem
from simpletuner.models import imports
from simpletuner.wording import counted

LEAST = {"subject": 5, "style": 20, "domain": 1000}  # pictures, as the presets are meant for


@dataclass(frozen=True, slots=True)
class Draft:
    """A proposal as files.

    Attributes:
        proposal: What is proposed, and why.
        files: Name → content.
        notes: What a person should know beside it.
        estimate: Memory, time and disk.
    """

    proposal: Proposal
    files: Mapping[str, Any]
    notes: tuple[str, ...]
    estimate: tuple[str, ...]


def draft(
    answers: Answers,
    pictures: Pictures,
    machine: Machine,
    folder: Path,
    aside: Path,
    source: str,
    dialogue: bool = False,
) -> Draft:
    """A draft that training accepts.

    Args:
        answers: What a person said.
        pictures: What the folder holds.
        machine: What trains.
        folder: Where the files will lie.
        aside: A temporary folder.
        source: Where the answers came from, for messages.
        dialogue: Whether a person answers in a terminal: hints name the answer to change, else what a script writes.

    Raises:
        ConfigError: With everything that must not be.
        ModelError: The model cannot be looked at.
    """
    imports.libraries()  # seconds: not before there is something to estimate
    used = _with_captions(pictures, answers, source)
    chosen = estimates.look_at(str(model(answers, used, machine).value), aside)

    def made(proposal: Proposal) -> dict[str, Any]:
        return content.files(proposal, answers, used, chosen.shape, folder)

    def fits(proposal: Proposal) -> bool | None:
        try:
            config = estimates.load_from(made(proposal), aside)
            return estimates.fits(estimates.subject(config, chosen, used.sizes), machine)
        except (ConfigError, ModelError):  # told below, with all the rest
            return None

    usual = propose(answers, used, machine, chosen.shape, content.preset, fits)
    config = _checked(usual, made(usual), answers, used, chosen, aside, source)
    proposal = fresh.placed(usual, config, folder)
    files = made(proposal)
    if proposal != usual:
        config = _checked(proposal, files, answers, used, chosen, aside, source)
    asked = estimates.subject(config, chosen, used.sizes)
    notes = [
        content.told(files[content.DATASETS][0]),
        chosen.note,
        _left_out(pictures, used),
        _of_names(answers, used, dialogue),
        _untold(proposal, answers, used, files[content.CONFIG]),
        fresh.note(proposal, config),
        *_of_size(proposal, answers, used, machine),
    ]
    if answers.validation and _share(files, chosen) > 1:
        notes.append("Drawing the validation pictures takes longer than so short a training.")
    return Draft(proposal, files, tuple(filter(None, notes)), tuple(estimates.lines(asked, machine)))


def _with_captions(pictures: Pictures, answers: Answers, source: str) -> Pictures:
    """What training uses: those with a caption file, where captions are text files. Raises ConfigError without any."""
    if captions(answers, pictures).value != "textfile":
        return pictures
    if not pictures.captions:
        reason = f"no picture in {pictures.folder} has a text file beside it"
        raise ConfigError([Problem(source, "captions", "textfile", reason, "use instanceprompt, or write some")])
    return pictures.only_captioned()


def _of_size(proposal: Proposal, answers: Answers, pictures: Pictures, machine: Machine) -> Iterator[str]:
    """Too large a model, or too few pictures."""
    if proposal.fits is False:
        yield f"Nothing was found that fits into {machine.gib:g} GiB: take a smaller model or resolution."
    least = LEAST[answers.kind]
    if pictures.count < least:
        few = counted(pictures.count, "is", "are")
        yield f"A {answers.kind} wants {counted(least, 'picture')} or more, and {few} there: expect them learned by heart."
    if proposal.fill_up:
        yield "Buckets with fewer pictures than a batch are filled by repeating (allow_dataset_oversubscription)."


def _untold(proposal: Proposal, answers: Answers, pictures: Pictures, config: Mapping[str, Any]) -> str:
    """What follows where a subject's name is in no caption; "" where it is in one."""
    if not content.untold(proposal, answers, pictures):
        return ""
    name = content.words(answers, pictures)
    said = f"No caption says {name!r}, so the model does not learn that name"
    first = str(config.get("validation_prompt", ""))
    read = content.captions_read(proposal, pictures)
    if first and first in read:
        return f"{said}: the first prompt is a caption."
    if first and any(caption.startswith(first) for caption in read):
        return f"{said}: the first prompt is the beginning of a caption."
    return f"{said}: {first!r} shows nothing of what it learns." if name.lower() in first.lower() else f"{said}."


def _left_out(every: Pictures, used: Pictures) -> str:
    """Pictures without a caption file, where captions are asked to be text files."""
    number = every.count - used.count
    return f"{counted(number, 'picture has', 'pictures have')} no caption file and will be skipped." if number else ""


def _of_names(answers: Answers, pictures: Pictures, dialogue: bool = False) -> str:
    """What a person may say where a name or a kind was guessed or left out; "" where neither was."""
    if answers.kind != "subject" or (answers.words and content.kind_of_thing(answers)):
        return ""
    kind = content.kind_of_thing(answers) or "toy"
    if not answers.words:
        name = content.words(answers, pictures)
        return f'The subject\'s name ({name!r}) is a guess: words="sks {kind}" names it, with a rare word that is to mean yours.'
    how = f"what={kind}, for example, adds"
    if dialogue:
        how = f"`what` under Change something says it ({kind}, for example), which adds"
    return (
        f"What kind of thing it is cannot be told from {answers.words!r}: {how} a prompt that shows whether others of its "
        "kind stay as they were."
    )


def _checked(
    proposal: Proposal,
    files: Mapping[str, Any],
    answers: Answers,
    pictures: Pictures,
    chosen: Model,
    aside: Path,
    source: str,
) -> RunConfig:
    """The configuration as the program reads it. Raises ConfigError with its problems and the wizard's own, together."""
    rows = list(problems(proposal, pictures, chosen.shape))
    if answers.validation and answers.validation_step_interval and (times := _share(files, chosen)) > 1:
        reason = f"validation would take {times:.1f} times as long as the training itself"
        interval = answers.validation_step_interval
        rows.append(("validation_step_interval", interval, reason, f"use {round(interval * times * 4)} or more, or 0"))
    found = [Problem(source, *row) for row in rows]
    try:
        config = estimates.load_from(files, aside)
    except ConfigError as error:
        # The file they were tried in is gone: what a person can change are the answers.
        theirs = (Problem(source, p.key, p.value, p.reason, p.remedy) for p in error.problems)
        raise ConfigError([*found, *theirs]) from error
    if found:
        raise ConfigError(found)
    return config


def _share(files: Mapping[str, Any], chosen: Model) -> float:
    """How long validation takes against training."""
    drawn = len(files[content.PROMPTS]) + 1
    return content.share(files[content.CONFIG], files[content.DATASETS], drawn, chosen.shape)


def pictured(files: Mapping[str, Any]) -> dict[str, Choice]:
    """What the validation pictures show, and when they are drawn; nothing where none is drawn."""
    config = files[content.CONFIG]
    if config.get("validation_disable"):
        return {}
    interval, others = config.get("validation_step_interval", 0), len(files[content.PROMPTS])
    beside = f"the main one of {others + 1} prompts: the others lie in {content.PROMPTS}" if others else "the only one"
    when = f"pictures are drawn every {counted(interval, 'step')}, and at the start and the end"
    only = "pictures are drawn at the start and the end only"
    return {
        "validation_prompt": Choice(config["validation_prompt"], beside),
        "validation_step_interval": Choice(interval, when if interval else only),
    }


def told(made: Draft) -> list[str]:
    """The proposal, a line each: the choice, its value, and why."""
    further = {key: Choice(value, SETTINGS[key]) for key, value in made.proposal.settings.items()}
    every = {**made.proposal.choices, **further, **pictured(made.files)}
    width = max(map(len, every))
    return [f"  {name:{width}}  {shown(choice.value)}: {choice.why}" for name, choice in every.items()]


def shown(value: Any) -> str:
    """A value as config.json has it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
