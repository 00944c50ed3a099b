"""`simpletuner dashboard`: a page on this machine that shows runs, live or finished."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("folders", nargs=-1, required=True, metavar="OUTPUT_DIR...", type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), help="Port on 127.0.0.1  [8686, or any free one]")
@click.option(
    "--open/--no-open", "open_browser", default=None, help="Open the page in a browser  [if there is a screen]"
)
@click.option("--beside", is_flag=True, hidden=True, help="End with standard input: how a run starts it.")
@click.option("--debug", is_flag=True, help="Show a traceback with errors.")
def dashboard(
    folders: tuple[Path, ...], port: int | None, open_browser: bool | None, beside: bool, debug: bool
) -> None:
    """Show the runs in these output folders on a page of this machine: curves, pictures, log; live while they train.

    The printed address holds a token: whoever has none sees nothing. Ends with Ctrl-C.
    """
    from simpletuner.config.options import defaults
    from simpletuner.errors import TunerError, printable
    from simpletuner.reporting.dashboard.serve import Serving, serve
    from simpletuner.reporting.settings import with_defaults

    for folder in folders:
        if not folder.expanduser().is_dir():
            raise TunerError(
                f"there is no folder {folder}. What to do: name the output_dir of a run, as the run printed it."
            )
    if open_browser is None:
        open_browser = not beside and sys.stdout.isatty() and has_screen()
    serving = Serving(
        [folder.expanduser() for folder in folders],
        with_defaults(defaults()),
        port,
        open_browser,
        sys.stdin if beside else None,
    )

    def say(text: str) -> None:
        click.echo(printable(text))
        if not beside:  # else the run's own end is its end
            click.echo("Ctrl-C ends it; the runs are not touched by that.")

    serve(serving, say)


def has_screen() -> bool:
    """Whether a browser could show itself here."""
    import os

    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
