"""`simpletuner cache`: build, verify, tidy and count the caches of a configuration."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from simpletuner.cli.train import parse_overrides

_SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True, "max_content_width": 110}


def _configured(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that name a configuration, for every subcommand."""
    for decorate in (
        click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[--KEY VALUE | KEY=VALUE]..."),
        click.option("--debug", is_flag=True, help="Show a traceback with errors."),
        click.option("--example", metavar="NAME", help="Use a packaged example (simpletuner examples list)."),
        click.option("--env", metavar="NAME", help="Use config/NAME/config.json."),
        click.option("--config", "-c", metavar="PATH", help="Configuration file or folder  [config/config.json]"),
    ):
        command = decorate(command)
    return command


def _load(config: str | None, env: str | None, example: str | None, arguments: tuple[str, ...]) -> tuple[Any, Any]:
    from simpletuner.config.read import load

    run_config = load(config, env, example, parse_overrides(list(arguments)))
    from simpletuner.reporting.progress import Reporter

    return run_config, Reporter()


@click.group()
def cache() -> None:
    """Latents and text embeds on disk: derived from your pictures, and safe to delete."""


@cache.command(context_settings=_SETTINGS)
@_configured
def build(config: str | None, env: str | None, example: str | None, debug: bool, arguments: tuple[str, ...]) -> None:
    """Encode every picture and caption, and stop before training. What is there already is kept."""
    run_config, reporter = _load(config, env, example, arguments)
    from simpletuner.training import caching

    caching.build(run_config, reporter)


@cache.command(context_settings=_SETTINGS)
@_configured
def verify(config: str | None, env: str | None, example: str | None, debug: bool, arguments: tuple[str, ...]) -> None:
    """Read every cached tensor; damaged shards are removed. Exits with 1 if there were any."""
    run_config, reporter = _load(config, env, example, arguments)
    from simpletuner.training import caching

    if not caching.verify(caching.homes(run_config, reporter), reporter):
        sys.exit(1)


@cache.command(context_settings=_SETTINGS)
@click.option("--delete", is_flag=True, help="Remove them; without it they are only listed.")
@_configured
def gc(
    config: str | None, env: str | None, example: str | None, debug: bool, delete: bool, arguments: tuple[str, ...]
) -> None:
    """List shards of which the configuration uses nothing: other models or settings, edited or removed pictures.

    The VAE and the text encoder are loaded, since caches are named by their weights.
    """
    run_config, reporter = _load(config, env, example, arguments)
    from simpletuner.training import caching

    caching.collect(caching.homes(run_config, reporter, compare=True), reporter, delete)


@cache.command(context_settings=_SETTINGS)
@_configured
def stats(config: str | None, env: str | None, example: str | None, debug: bool, arguments: tuple[str, ...]) -> None:
    """Say what the caches hold and how much of it the configuration uses."""
    run_config, reporter = _load(config, env, example, arguments)
    from simpletuner.training import caching

    caching.stats(caching.homes(run_config, reporter), reporter)
