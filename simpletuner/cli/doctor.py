"""`simpletuner doctor`: can this machine train, and if not, what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.option("--config", "-c", metavar="PATH", help="Configuration whose folders are tried  [config/config.json]")
@click.option("--debug", is_flag=True, help="Show a traceback with errors.")
def doctor(config: str | None, debug: bool) -> None:
    """Look at Python, torch, the card, optional packages, folders and the hub, a line each: OK, note or problem.

    Exits with 1 if something that training needs is broken, else with 0. Needs no network, and shows no token.
    """
    from simpletuner.errors import printable
    from simpletuner.training.doctor import examine

    folders = _folders(config)
    problems = 0
    for line in examine(folders):
        problems += line.state == "problem"
        click.echo(printable(str(line)))
    click.echo(f"{problems} to mend: see the lines that begin with problem." if problems else "This machine can train.")
    sys.exit(1 if problems else 0)


def _folders(config: str | None) -> dict[str, Path]:
    """What a run writes into: by the configuration if there is one, else where it would lie by default."""
    import os
    import tempfile

    from huggingface_hub import constants

    from simpletuner.config.files import find_config
    from simpletuner.config.read import load
    from simpletuner.errors import TunerError

    folders = {"Output": Path("output"), "Caches": Path("cache")}
    try:
        if config or find_config(None, None, None, os.environ):
            found = load(config)
            caches = [entry.cache_dir_vae for entry in found.datasets.train] + [found.datasets.text_cache_dir]
            several = {f"Cache {n}": folder for n, folder in enumerate(dict.fromkeys(caches), 1)}
            folders = {"Output": found.options.checkpoints.output_dir, **several}
    except TunerError as error:
        if config:
            raise
        click.echo(f"note     Configuration: {str(error).splitlines()[0]} What to do: `simpletuner check` lists all")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return {
        **folders,
        "Downloaded models": Path(constants.HF_HUB_CACHE),
        "Compiled kernels": home / "simpletuner",
        "Temporary files": Path(tempfile.gettempdir()),
    }
