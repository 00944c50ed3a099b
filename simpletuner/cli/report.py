"""`simpletuner report`: what a run did and learned, as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", metavar="OUTPUT_DIR", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="HTML file  [OUTPUT_DIR/report.html]")
@click.option("--debug", is_flag=True, help="Show a traceback with errors.")
def report(folder: Path, out: Path | None, debug: bool) -> None:
    """Write settings, curves, pictures and log of the run in OUTPUT_DIR into one HTML file.

    The file opens without a network, runs no script and holds its pictures: it can be kept or sent.
    """
    from simpletuner.config.options import defaults
    from simpletuner.errors import TunerError, printable
    from simpletuner.reporting.report import write
    from simpletuner.reporting.settings import with_defaults

    root = folder.expanduser()
    known = ("metrics.jsonl", "config.resolved.json", "run.json")
    if not any((root / name).is_file() for name in known):
        raise TunerError(
            f"{root} holds no run: none of {', '.join(known)} is there. What to do: name the output_dir of a run, as "
            "the run printed it."
        )
    try:
        file = write(root, with_defaults(defaults()), out.expanduser() if out else None)
    except OSError as error:
        place = error.filename2 or error.filename  # of a rename its aim, not what was written beside it
        raise TunerError(f"cannot write {place}: {error.strerror}. Choose another file with --out.") from error
    size = file.stat().st_size / 2**20
    click.echo(printable(f"Report: {file} ({size:.1f} MiB, opens without a network)"))
