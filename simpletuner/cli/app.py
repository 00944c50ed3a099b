"""The command line's border: commands, and errors as one paragraph. Imports no torch."""

from __future__ import annotations

import difflib
import errno
import io
import os
import shlex
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import TextIO, cast

import click

from simpletuner import __version__
from simpletuner.errors import TunerError, printable
from simpletuner.wording import where_to_write

# name → (where it is, its line in --help: asking the command itself would load it)
_LAZY = {
    "cache": ("simpletuner.cli.cache:cache", "Build, verify, tidy or count the caches of latents and text embeds."),
    "check": (
        "simpletuner.cli.check:check",
        "Look at the data: what is used, skipped, cut; with a page of all pictures.",
    ),
    "configure": (
        "simpletuner.cli.configure:configure",
        "Ask, look at pictures and card, propose, and write the configuration.",
    ),
    "convert-adapter": (
        "simpletuner.cli.adapters:convert",
        "Write a LoRA in the other key layout: diffusers to ComfyUI, or back.",
    ),
    "dashboard": (
        "simpletuner.cli.dashboard:dashboard",
        "Show runs on a page of this machine: curves, pictures, log; live.",
    ),
    "doctor": (
        "simpletuner.cli.doctor:doctor",
        "Look at the machine: Python, torch, card, folders, hub; and what to do.",
    ),
    "generate": (
        "simpletuner.cli.generate:generate",
        "Draw pictures with a model, a run, a checkpoint or an adapter.",
    ),
    "merge": ("simpletuner.cli.adapters:merge", "Merge an adapter into its base model: a complete diffusers folder."),
    "publish": ("simpletuner.cli.publish:publish", "Upload a finished run to the hub, with its model card."),
    "report": ("simpletuner.cli.report:report", "Write what a run did and learned into one HTML file."),
    "train": ("simpletuner.cli.train:train", "Train by config/config.json, or the embedded example without one."),
}


class LazyGroup(click.Group):
    """Loads a command's module only when the command is used, so that --help stays instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands by name."""
        return sorted([*super().list_commands(ctx), *_LAZY])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One command."""
        if cmd_name in _LAZY:
            module, attribute = _LAZY[cmd_name][0].split(":")
            command: click.Command = getattr(import_module(module), attribute)
            return command
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of these words; click names the nearest of those that are loaded, this one of all."""
        close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
        if close and args[0] not in self.list_commands(ctx):
            raise click.UsageError(f"No such command {args[0]!r}. Did you mean {close[0]!r}?", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line for each command, without loading any."""
        lines = {name: text for name, (_, text) in _LAZY.items()}
        lines |= {name: command.get_short_help_str(limit=90) for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted(lines.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="simpletuner")
def app() -> None:
    """Fine-tune NVLabs Sana on your own pictures."""
    # For every command, before torch loads OpenMP: threads that spin while they wait make a step a hundred times slower as
    # soon as another program wants a core (measured: 13 s instead of 0.1 s); sleeping ones cost nothing that shows.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@app.group()
def examples() -> None:
    """Ready-made configurations: list them, or copy one to start from."""


@examples.command("list")
def list_examples() -> None:
    """List the packaged examples."""
    from simpletuner.config.examples import EXAMPLES

    width = max(map(len, EXAMPLES))
    for name, example in EXAMPLES.items():
        click.echo(f"{name:{width}}  {example.text}")


@examples.command("copy")
@click.argument("name")
@click.argument("destination", type=click.Path(file_okay=False, path_type=Path), default=Path("config"))
@click.option("--force", is_flag=True, help="Overwrite files that are there already.")
def copy_example(name: str, destination: Path, force: bool) -> None:
    """Copy the files of example NAME to DESTINATION (config by default)."""
    from simpletuner.config.examples import copy
    from simpletuner.config.own_output import own_output

    for path in copy(name, destination, force):
        click.echo(f"wrote {path}")
    click.echo(f"output_dir is {own_output(destination, name)}, of this copy alone.")
    where = "" if destination == Path("config") else f" --config {shlex.quote(str(destination))}"
    click.echo(f"Next: edit the paths in these files, then `simpletuner train{where}`.")


def main() -> None:
    """Entry point: run, and turn errors into one paragraph and an exit code."""
    debug = "--debug" in sys.argv
    for stream in (sys.stdout, sys.stderr):
        # Elsewhere than in UTF-8 letters may be lacking, which is no reason to end.
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="replace")
    try:
        app.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _say_wrong("Interrupted.")
        sys.exit(130)
    except TunerError as error:
        if debug:
            traceback.print_exc()
        _say_wrong(printable(f"Error: {error}"))
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the border: a person gets a sentence, --debug the rest
        if debug:
            traceback.print_exc()
        if _is_interrupt(error):
            _say_wrong("Interrupted.")
            sys.exit(130)
        if known := _known(error):
            _say_wrong(printable(f"Error: {known}"))
            sys.exit(1)
        what = f"Error: something unforeseen happened ({type(error).__name__}: {error}). "
        _say_wrong(
            printable(what) + "This is a fault of the program; run again with --debug and report what it prints."
        )
        sys.exit(1)


def _is_interrupt(error: BaseException) -> bool:
    """Whether a Ctrl-C lies under it.

    Python 3.11 hands on a RuntimeError that it caused where a class was being made; and click, which answers it with an
    empty line, an OSError where nobody is there any more to read that.
    """
    gone = isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO)
    cause = error.__cause__ or (error.__context__ if gone else None)
    return isinstance(error, KeyboardInterrupt) or (cause is not None and _is_interrupt(cause))


def _known(error: Exception) -> str:
    """What it means and what to do, of the few errors that any place may meet and that are a person's to mend; or ""."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        remedy = f"What to do: {where_to_write(error)}, then start again."
        return f"cannot write {error.filename or 'a file'}: {error.strerror}. {remedy}"
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # Path.expanduser
        return "a path begins with ~, and there is no such home folder. What to do: write that path in full."
    return ""


def _say_wrong(text: str) -> None:
    """An error: in a terminal its lines break between words. The terminal may be closed by now; the exit status stays."""
    from simpletuner.reporting.screen import Screen

    if not sys.stderr:  # closed from the start
        return
    if sys.stderr.isatty():
        from rich.console import Console

        from simpletuner.reporting.wrapping import wrapped

        text = wrapped(text, Console(stderr=True).width)
    click.echo(text, file=cast(TextIO, Screen(sys.stderr)))
