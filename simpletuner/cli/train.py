"""`simpletuner train`: every option of config.json on the command line, generated from the option models."""

from __future__ import annotations

import sys
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click

from simpletuner.config.catalogue import ALIASES, CATALOGUE
from simpletuner.config.options import section_of, sections
from simpletuner.config.section import Section


def _is_bool(key: str) -> bool:
    field = sections()[section_of()[key]].model_fields[key]
    return field.annotation is bool


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """``--key value``, ``--key=value`` and ``key=value`` → values by key; a bare ``--flag`` is true.

    Unknown keys are kept: checking names them together with every other problem.

    Raises:
        click.UsageError: A value without a key, or a known key without its value.
    """
    known = {*section_of(), *CATALOGUE, *ALIASES}
    overrides: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        dashed = word.startswith("--")
        name, has_value, value = word.partition("=")
        key = name.lstrip("-").replace("-", "_")
        if not dashed and not has_value:
            remedy = f"write --config {word}" if word.endswith(".json") else "write --key value or key=value"
            raise click.UsageError(f"{word!r} belongs to no option; {remedy}.")
        if has_value:
            overrides[key] = value
        elif rest and not _looks_like_option(rest[0], known):
            overrides[key] = rest.pop(0)
        elif ALIASES.get(key, key) not in section_of() or _is_bool(ALIASES.get(key, key)):
            overrides[key] = "true"
        else:
            raise click.UsageError(f"Option --{key} needs a value.")
    return overrides


def _looks_like_option(word: str, known: set[str]) -> bool:
    name, has_value, _ = word.partition("=")
    return word.startswith("--") or (bool(has_value) and name.replace("-", "_") in known)


def _default(cls: type[Section], key: str) -> str:
    value = cls.model_fields[key].default
    if value is None or value == "":
        return ""
    if key == "validation_resolution":
        return ",".join(f"{w}x{h}" for w, h in value)
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _choices(cls: type[Section], key: str) -> str:
    values = _literals(cls.model_fields[key].annotation)
    return f" ({', '.join(values)})" if len(values) > 1 else ""


def _literals(annotation: Any) -> list[str]:
    """The words that a Literal allows, also one that may be left out."""
    if get_origin(annotation) in (Union, UnionType):
        return [word for part in get_args(annotation) for word in _literals(part)]
    return [a for a in get_args(annotation) if isinstance(a, str)] if get_origin(annotation) is Literal else []


class OptionsHelp(click.Command):
    """Writes all options, grouped by section, from their models."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options first, then every section."""
        super().format_options(ctx, formatter)
        for cls in sections().values():
            rows = []
            for key, field in cls.model_fields.items():
                default = _default(cls, key)
                text = f"{field.description}{_choices(cls, key)}"
                rows.append((f"--{key}", f"{text}  [{default}]" if default else text))
            with formatter.section((cls.__doc__ or "").rstrip(".")):
                formatter.write_dl(rows)


@click.command(
    cls=OptionsHelp,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "max_content_width": 110},
)
@click.option("--config", "-c", metavar="PATH", help="Configuration file or folder  [config/config.json]")
@click.option("--env", metavar="NAME", help="Use config/NAME/config.json.")
@click.option("--example", metavar="NAME", help="Run a packaged example (simpletuner examples list).")
@click.option("--debug", is_flag=True, help="Show a traceback with errors.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[--KEY VALUE | KEY=VALUE]...")
def train(config: str | None, env: str | None, example: str | None, debug: bool, arguments: tuple[str, ...]) -> None:
    """Train by config/config.json; options given here win over environment (SIMPLETUNER_KEY) and file.

    Without any configuration the embedded example 'pocket' runs: a small Sana that learns a style in minutes.
    """
    import os

    from simpletuner.config.files import find_config
    from simpletuner.config.process_options import is_one_of_several
    from simpletuner.config.read import load

    one_of_several = is_one_of_several(os.environ)
    words = list(arguments)
    for name in ("config", "env", "example"):  # key=value spelling of this command's own options
        for word in [w for w in words if w.startswith(f"{name}=")]:
            words.remove(word)
            value = word.partition("=")[2]
            config, env, example = (
                value if name == "config" else config,
                value if name == "env" else env,
                value if name == "example" else example,
            )
    overrides = parse_overrides(words)
    if not example and find_config(config, env, example, os.environ) is None:
        if not one_of_several:
            click.echo("There is no config/config.json here: running the embedded example 'pocket'.")
            click.echo("(For pictures of your own: simpletuner configure)")
        example = "pocket"
    run_config = load(config, env, example, overrides)
    processes = run_config.options.processes
    if processes.num_processes > 1 and not one_of_several:
        from simpletuner.training.launch import Launch, launch

        chosen = {"--config": config, "--env": env, "--example": example}
        again = [word for name, value in chosen.items() if value for word in (name, value)]
        asked = Launch(
            processes=processes.num_processes,
            machines=processes.num_machines,
            machine_rank=processes.machine_rank,
            address=processes.main_process_ip or "",
            port=processes.main_process_port,
        )
        sys.exit(launch(asked, ["train", *again, *(["--debug"] if debug else []), *words]))
    from simpletuner.training.run import train as run

    run(run_config)
