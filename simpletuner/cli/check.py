"""`simpletuner check`: look at the data before an hour is spent on it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from simpletuner.cli.train import parse_overrides


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "max_content_width": 110})
@click.option("--config", "-c", metavar="PATH", help="Configuration file or folder  [config/config.json]")
@click.option("--env", metavar="NAME", help="Use config/NAME/config.json.")
@click.option("--example", metavar="NAME", help="Check a packaged example (simpletuner examples list).")
@click.option(
    "--page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="HTML file  [OUTPUT_DIR/dataset.html; dataset-refused.html where training would not start]",
)
@click.option("--reconstruct", is_flag=True, help="Load the VAE and measure how well it reproduces each picture.")
@click.option("--debug", is_flag=True, help="Show a traceback with errors.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[--KEY VALUE | KEY=VALUE]...")
def check(
    config: str | None,
    env: str | None,
    example: str | None,
    page: Path | None,
    reconstruct: bool,
    debug: bool,
    arguments: tuple[str, ...],
) -> None:
    """Say what training would use, skip, cut and enlarge, and write a page that shows every picture.

    Exits with 1 if training would not start, else with 0, also where a hub cannot be asked for the model. Needs no weights, and writes into no picture folder.
    """
    from simpletuner.config.read import load

    run_config = load(config, env, example, parse_overrides(list(arguments)))
    from simpletuner.reporting.progress import Reporter
    from simpletuner.training.check import check as run

    if not run(run_config, Reporter(), page, reconstruct):
        sys.exit(1)
