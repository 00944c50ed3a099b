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
    from simpletuner.training.doctor import examine, verdict

    found = []
    for line in examine(*_places(config)):
        found.append(line)
        click.echo(printable(str(line)))
    broken = any(line.state == "problem" for line in found)
    click.echo(verdict(found, "" if broken else _large()))
    sys.exit(1 if broken else 0)


def _large() -> str:
    """Sana 1.6B, and how the card has room for it; "" if it has none, or there is no card."""
    import torch

    if not torch.cuda.is_available():
        return ""
    from simpletuner.cli.configuring import estimates, ways

    how = ways.largest(estimates.machine(None))
    return f"Sana 1.6B {how} (batch 1 at 1024 px, memory auto)" if how else ""


def _places(config: str | None) -> tuple[dict[str, Path], Path | None]:
    """What a run writes into, by the configuration or else where it would lie by default; and its model's own folder."""
    import os
    import tempfile

    from huggingface_hub import constants

    from simpletuner.config.files import find_config
    from simpletuner.config.read import load
    from simpletuner.errors import TunerError

    folders, model = {"Output": Path("output"), "Caches": Path("cache")}, None
    try:
        if config or find_config(None, None, None, os.environ):
            found = load(config)
            caches = [entry.cache_dir_vae for entry in found.datasets.train] + [found.datasets.text_cache_dir]
            several = {f"Cache {n}": folder for n, folder in enumerate(dict.fromkeys(caches), 1)}
            named = Path(found.options.model.pretrained_model_name_or_path)
            model = named if named.is_dir() else None
            folders = {"Output": found.options.checkpoints.output_dir, **several}
    except TunerError as error:
        if config:
            raise
        click.echo(f"note     Configuration: {str(error).splitlines()[0]} What to do: `simpletuner check` lists all")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hub = {} if model else {"Downloaded models": Path(constants.HF_HUB_CACHE)}
    beside = {"Compiled kernels": home / "simpletuner", "Temporary files": Path(tempfile.gettempdir())}
    return {**folders, **hub, **beside}, model
