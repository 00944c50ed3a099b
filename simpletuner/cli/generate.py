"""`simpletuner generate`: pictures from a model, a run, a checkpoint or an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from simpletuner.reporting.progress import Reporter
    from simpletuner.training.drawing_again import Drawing
    from simpletuner.training.generating import Loading
    from simpletuner.training.subject import Subject

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@click.command(context_settings={"max_content_width": 110})
@click.argument("model", metavar="MODEL")
@click.option("--prompt", "-p", "prompts", multiple=True, metavar="TEXT", help="What to draw; may be repeated.")
@click.option(
    "--prompts", "library", type=click.Path(path_type=Path), metavar="FILE", help='JSON file: {"nickname": "prompt"}.'
)
@click.option("--negative", metavar="TEXT", help="What not to draw  [as in the run's validation, else empty]")
@click.option("--seed", type=click.IntRange(min=0), help="Of the first picture  [as in the run's validation, else 42]")
@click.option(
    "--num", type=click.IntRange(min=1), default=1, show_default=True, help="Pictures of each prompt and size."
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="WxH",
    help="May be repeated  [as in the run's validation, else the model's own]",
)
@click.option("--steps", type=click.IntRange(min=1), help="Sampler steps  [as in the run's validation, else 20]")
@click.option(
    "--guidance", type=click.FloatRange(min=0), help="1 or less is off  [as in the run's validation, else 4.5]"
)
@click.option(
    "--scheduler",
    type=click.Choice(["flow_match", "dpm++", "unipc"]),
    help="[as in the run's validation, else the model's own]",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder  [a new one below generated]")
@click.option("--grid/--no-grid", default=True, show_default=True, help="One picture of all pictures as well.")
@click.option("--overwrite", is_flag=True, help="Replace files of the same names.")
@click.option("--ema", "which", flag_value="ema", help="Of a checkpoint: the EMA weights  [default if it has them]")
@click.option("--live", "which", flag_value="live", help="Of a checkpoint: the weights that are trained.")
@click.option(
    "--base", "--model", "base", metavar="MODEL", help="Pipeline under an adapter or checkpoint  [as recorded]"
)
@click.option(
    "--strength", type=click.FloatRange(min=0), help="Of an adapter: 0 is the base model  [as in validation, else 1]"
)
@click.option("--revision", metavar="NAME", help="Hub revision of the pipeline.")
@click.option("--variant", metavar="NAME", help="Weight variant, e.g. bf16.")
@click.option("--dtype", type=click.Choice(list(_DTYPES)), help="[bf16 on a GPU, fp32 elsewhere]")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Pictures drawn at once.")
@click.option("--tiling", is_flag=True, help="Decode large pictures in tiles: less memory.")
@click.option(
    "--instruction/--no-instruction", default=None, help="The model's own instruction before prompts  [as trained]"
)
@click.option("--tokens", type=click.IntRange(2, 8192), help="Kept of each prompt  [as trained, else 300]")
@click.option("--debug", is_flag=True, help="Show a traceback with errors.")
def generate(model: str, debug: bool, **given: Any) -> None:
    """Draw pictures with MODEL.

    MODEL is a hub id, a flavour's name, a pipeline's folder, the output_dir of a run, a checkpoint, or an adapter (file or
    folder). Weights of a run draw what its validation drew: same instruction, tokens, size, steps, guidance, seed and sampler.
    """
    prompts, strengths, notices = _prompts(given["prompts"], given["library"])
    from simpletuner.config.prompts import passed_over
    from simpletuner.evaluation.pictures import ValidationSettings
    from simpletuner.reporting.progress import Reporter
    from simpletuner.training import subject
    from simpletuner.training.generating import Target
    from simpletuner.training.generating import generate as run

    reporter = Reporter()
    for notice in notices:
        reporter.say(notice)
    found = subject.find(_by_name(model, "MODEL"), _by_name(given["base"], "--base"), given["which"])
    how = _drawing(found, given, reporter)
    if strengths and not found.adapter:
        reporter.say(passed_over(strengths, found.words))
        strengths = {}
    settings = ValidationSettings(
        prompts=prompts,
        negative_prompt=how.negative,
        guidance=how.guidance,
        steps=how.steps,
        sizes=how.sizes,
        images_per_prompt=given["num"],
        seed=how.seed,
        strengths=strengths,
        batch_size=given["batch"],
    )
    run(_loading(found, how, given), settings, Target(given["out"], given["grid"], given["overwrite"]), reporter)


def _drawing(found: Subject, given: Mapping[str, Any], reporter: Reporter) -> Drawing:
    """How it is drawn: as asked, else as the run's validation did, which is said."""
    from dataclasses import replace

    from simpletuner.data.types import Size
    from simpletuner.training import drawing_again

    asked = {
        "guidance": given["guidance"],
        "steps": given["steps"],
        "seed": given["seed"],
        "sampler": given["scheduler"],
        "negative": given["negative"],
        "strength": _strength(found, given["strength"]),
        "sizes": tuple(Size(*size) for size in _sizes(given["sizes"])) or None,
    }
    of_run = drawing_again.of_run(found.record)
    if found.record and (sentence := drawing_again.told(of_run, asked)):
        reporter.say(sentence)
    if found.adapter and not found.record and (sentence := drawing_again.without_run(given)):
        reporter.say(sentence)
    if departure := drawing_again.departure(found.record):
        reporter.say(departure)
    unknown = drawing_again.unknown_sampler(found.record)
    if unknown and not given["scheduler"]:
        reporter.say(
            f"The run's record names a sampler {unknown!r}, which is none of --scheduler: the model's own draws"
        )
    return replace(of_run, **{name: value for name, value in asked.items() if value is not None})


def _strength(found: Subject, asked: float | None) -> float | None:
    """What is asked for of the adapter; 1 where there is none. Raises TunerError where there is none and it is asked for."""
    from simpletuner.errors import TunerError

    if found.adapter:
        return asked
    if asked is not None:
        raise TunerError(f"--strength acts on an adapter, and {found.words} has none. What to do: leave it out.")
    return 1.0


def _loading(found: Subject, how: Drawing, given: Mapping[str, Any]) -> Loading:
    """What is loaded, and how."""
    import torch

    from simpletuner.models.families import FAMILIES
    from simpletuner.training.generating import Loading

    own = given["instruction"]
    return Loading(
        subject=found,
        revision=given["revision"],
        variant=given["variant"],
        dtype=getattr(torch, _DTYPES[given["dtype"]]) if given["dtype"] else None,
        strength=how.strength,
        tiling=given["tiling"],
        sampler=how.sampler,
        instruction=None if own is None else FAMILIES["sana"].default_instruction() if own else (),
        tokens=given["tokens"],
    )


def _by_name(model: str | None, asked_by: str) -> Any:
    """A flavour's name → its hub id; ``{example:NAME}`` → its folder."""
    from simpletuner.config.catalogue import FLAVOURS
    from simpletuner.config.examples import expand

    return None if model is None else FLAVOURS.get(model) or expand(model, asked_by)


def _sizes(given: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Widths and heights, each once. Raises click.BadParameter."""
    from simpletuner.config.values import parse_resolutions

    try:
        return tuple(dict.fromkeys(size for text in given for size in parse_resolutions(text)))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--size") from error


def _prompts(
    given: tuple[str, ...], library: Path | None
) -> tuple[tuple[tuple[str, str], ...], dict[str, float], list[str]]:
    """(nickname, prompt) of all, strengths by nickname, and sentences to print."""
    from simpletuner.config.files import read_file
    from simpletuner.config.prompts import Prompts, of_file

    prompts, notices = of_file(library, read_file) if library else (Prompts(), [])
    for text in given:
        name, number = " ".join(text.split())[:60].strip() or "no prompt", 2
        nickname = name
        while nickname in prompts.texts:
            nickname, number = f"{name} {number}", number + 1
        prompts.texts[nickname] = text
    if not prompts.texts:
        raise click.UsageError('there is nothing to draw: add --prompt "…", or --prompts FILE.')
    return tuple(prompts.texts.items()), prompts.strengths, notices
