"""`simpletuner publish`: a finished run goes to the hub, with its model card."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", metavar="OUTPUT_DIR", type=click.Path(path_type=Path))
@click.option("--to", "repository", required=True, metavar="USER/NAME", help="Repository on the hub; made if missing.")
@click.option("--private/--public", default=True, show_default=True, help="Of a repository that has to be made.")
@click.option("--note", default="", metavar="TEXT", help="A paragraph of yours for the model card.")
@click.option("--safe-for-work", is_flag=True, help="The pictures are for all audiences.")
@click.option(
    "--card", type=click.Path(dir_okay=False, path_type=Path), help="Write the model card to FILE; upload nothing."
)
@click.option("--debug", is_flag=True, help="Show a traceback with errors.")
def publish(
    folder: Path, repository: str, private: bool, note: str, safe_for_work: bool, card: Path | None, debug: bool
) -> None:
    """Upload what a run exported, with sample pictures and a model card, in one commit.

    Log in first: `hf auth login`, or HF_TOKEN. HF_ENDPOINT names a mirror.
    """
    from simpletuner.config.options import defaults
    from simpletuner.config.publishing_options import parse_repository
    from simpletuner.data.cache import write_atomic
    from simpletuner.reporting.model_card import Words
    from simpletuner.reporting.progress import Reporter
    from simpletuner.reporting.settings import with_defaults
    from simpletuner.training import published_run

    try:
        repository = parse_repository(repository)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--to") from error
    words, groups, reporter = Words(note, safe_for_work), with_defaults(defaults()), Reporter()
    if card:
        upload = published_run.of_run(folder.expanduser(), repository, private, words, groups)
        write_atomic(card, upload.texts["README.md"].encode())
        reporter.say(f"wrote {card}")
        return
    published_run.publish(folder, repository, private, words, groups, reporter)
