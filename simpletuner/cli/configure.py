"""`simpletuner configure`: from a folder of pictures to a configuration that trains."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from simpletuner.cli.configuring.drafting import Draft


@click.command(context_settings={"max_content_width": 110})
@click.option("--answers", "answers_file", metavar="FILE", help="JSON with answers; what it leaves out is proposed.")
@click.option("--defaults", is_flag=True, help="Ask nothing: take what is proposed.")
@click.option("--yes", is_flag=True, help="Overwrite files that differ, without asking.")
@click.option("--debug", is_flag=True, help="Show a traceback with errors.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[FILE] [KEY=VALUE]...")
def configure(answers_file: str | None, defaults: bool, yes: bool, debug: bool, arguments: tuple[str, ...]) -> None:
    """Ask step by step, look at pictures and card, propose, and write config/config.json and what goes with it.

    FILE is another place for config.json. For scripts: --answers FILE or --defaults, with answers as KEY=VALUE such as
    pictures=datasets/fox kind=style card=24 model=pocket. Nothing is overwritten without asking, or --yes.
    """
    from simpletuner.errors import TunerError
    from simpletuner.reporting.progress import Reporter

    say = Reporter().say
    config, given = _split(arguments)
    scripted = bool(answers_file or defaults or given)
    if not scripted and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise TunerError(
            "configure asks in a terminal, and this is none. What to do: add --answers FILE or --defaults, for example "
            "`simpletuner configure --defaults pictures=datasets/fox`."
        )
    with tempfile.TemporaryDirectory(prefix="simpletuner-") as aside:
        if scripted:
            draft = _scripted(answers_file, given, config, Path(aside), say)
        else:
            from simpletuner.cli.configuring.dialogue import converse

            draft = converse(config, Path(aside), say)
    if not _written(draft, config, scripted, yes, say):
        sys.exit(1)
    if not _check(config, say):
        sys.exit(1)


def _split(arguments: tuple[str, ...]) -> tuple[Path, dict[str, Any]]:
    """The place of config.json, and answers."""
    given = {key.lstrip("-"): value for key, found, value in (word.partition("=") for word in arguments) if found}
    files = [word for word in arguments if "=" not in word]
    if len(files) > 1 or any(word.startswith("-") for word in files):
        raise click.UsageError(f"{files[-1]!r} is neither one file nor KEY=VALUE.")
    config = Path(files[0] if files else "config/config.json").expanduser()
    return config / "config.json" if config.is_dir() or not config.suffix else config, given


def _scripted(answers_file: str | None, given: dict[str, Any], config: Path, aside: Path, say: Any) -> Draft:
    """A draft without a question."""
    from simpletuner.cli.configuring import drafting, estimates, pictures
    from simpletuner.cli.configuring.answers import answers
    from simpletuner.config.files import read_file
    from simpletuner.errors import ConfigError, DataError, Problem

    source = answers_file or "command line"
    values = read_file(Path(answers_file).expanduser()) if answers_file else {}
    if not isinstance(values, dict):
        raise ConfigError([Problem(source, "", type(values).__name__, 'it must be one object: {"key": value, …}')])
    said = answers({**values, **given}, source)
    try:
        found = pictures.look(said.pictures)
    except DataError as error:
        remedy = "name a folder with pictures: pictures=FOLDER"
        raise ConfigError([Problem(source, "pictures", str(said.pictures), str(error), remedy)]) from error
    machine = estimates.machine(said.card)
    draft = drafting.draft(said, found, machine, config.parent, aside, source)
    for line in (
        *pictures.saw(found), "Proposed:", *drafting.told(draft), *draft.notes, *draft.estimate
    ):  # fmt: skip
        say(line)
    return draft


def _written(draft: Draft, config: Path, scripted: bool, yes: bool, say: Any) -> bool:
    """Whether the files are there now, as drafted."""
    from simpletuner.cli.configuring import writing

    wanted = writing.texts(draft.files, config)
    lines = writing.difference(wanted)
    for line in lines:
        say(line, whole=True)
    if lines and not yes:
        if scripted:
            say("Nothing was written: these files are there already. What to do: add --yes, or name another file.")
            return False
        from simpletuner.cli.configuring.dialogue import agreed

        if not agreed("Overwrite these files?"):
            say("Nothing was written.")
            return False
    writing.write(wanted)
    for path in wanted:
        say(f"wrote {path}")
    return True


def _check(config: Path, say: Any) -> bool:
    """What `simpletuner check` says of what was written; whether training would start."""
    import os

    from simpletuner.config.files import find_config
    from simpletuner.config.read import load
    from simpletuner.reporting.progress import Reporter
    from simpletuner.training.check import check

    say("\n`simpletuner check` says:")
    right = check(load(str(config)), Reporter())
    usual = find_config(None, None, None, os.environ)
    same = usual is not None and usual.resolve() == config.resolve()
    say(f"\nNext: simpletuner train{'' if same else f' --config {config}'}")
    return right
