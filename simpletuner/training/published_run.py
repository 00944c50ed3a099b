"""What of a run's output folder is published, as one commit: the export, its pictures, its model card.

In: the folder. Out: an ``Upload``. Reads files only, so it serves a run at its end and `simpletuner publish` alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simpletuner.errors import TunerError
from simpletuner.models import adapters
from simpletuner.reporting import model_card
from simpletuner.reporting.hub import Upload, placeholder, push
from simpletuner.reporting.model_card import Words
from simpletuner.reporting.progress import Reporter
from simpletuner.reporting.run_folder import RunFolder, confined
from simpletuner.reporting.settings import Group
from simpletuner.training import checkpoint
from simpletuner.wording import counted


def of_run(output_dir: Path, repository: str, private: bool, words: Words, groups: Sequence[Group]) -> Upload:
    """The commit that publishes a run.

    Args:
        output_dir: Of the run.
        repository: ``owner/name`` or ``name``.
        private: Whether a repository that has to be made is private.
        words: For the model card.
        groups: Options by section with their defaults.

    Raises:
        TunerError: Nothing was exported yet, or the export is damaged.
    """
    folder = RunFolder(output_dir)
    folder.refresh()
    files = _export(output_dir)
    for shot in model_card.samples(folder.shots()):
        picture = confined(output_dir, shot.path)
        if picture:
            files[f"samples/{picture.name}"] = str(picture)
    step = folder.series.steps[-1] if folder.series.steps else 0
    readme = model_card.card(folder, groups, placeholder(repository), words)
    return Upload(repository, private, f"Trained model, step {step}", files, {"README.md": readme})


def _export(output_dir: Path) -> dict[str, str]:
    """Path in the repository → file, of the pipeline or the adapter."""
    pipeline, adapter = output_dir / "pipeline", output_dir / adapters.WEIGHTS
    if (pipeline / "model_index.json").is_file():
        if reason := checkpoint.problem_with(pipeline):
            raise TunerError(
                f"{pipeline} is damaged: {reason}. What to do: run the training command again, it exports anew."
            )
        found = [f for f in sorted(pipeline.rglob("*")) if f.is_file() and f.name != checkpoint.MANIFEST]
        return {f.relative_to(pipeline).as_posix(): str(f) for f in found}
    if adapter.is_file():
        beside = output_dir / adapters.LYCORIS_CONFIG
        return {f.name: str(f) for f in (adapter, beside) if f.is_file()}
    raise TunerError(
        f"{output_dir} has no exported model: neither pipeline/ nor {adapters.WEIGHTS}. What to do: name the output_dir of "
        "a run that came to its end."
    )


def by_hand(output_dir: Path, repository: str) -> str:
    """The command that publishes later."""
    return f"simpletuner publish {output_dir} --to {repository}"


def _refuse_without_hub() -> None:
    """What no second try can mend, instead of minutes of tries. Raises TunerError."""
    from huggingface_hub import constants, get_token

    if constants.is_offline_mode():
        raise TunerError("nothing can be published: HF_HUB_OFFLINE is set. What to do: unset it.")
    if not get_token():
        raise TunerError(
            "nothing can be published: nobody is logged in to the hub. What to do: `hf auth login`, or set HF_TOKEN."
        )


def publish(
    output_dir: Path, repository: str, private: bool, words: Words, groups: Sequence[Group], reporter: Reporter
) -> None:
    """`simpletuner publish`: upload now, and fail aloud.

    Raises:
        TunerError: There is nothing to upload, or the hub does not take it.
    """
    _refuse_without_hub()
    upload = of_run(output_dir.expanduser(), repository, private, words, groups)
    size = sum(Path(path).stat().st_size for path in upload.files.values())
    reporter.say(f"Uploading {counted(len(upload.files) + 1, 'file')} ({size / 2**20:,.1f} MiB) to {repository}")
    try:
        url = push(upload, reporter.say)
    except TunerError as error:
        raise TunerError(f"nothing was published: {error}. The files in {output_dir} are whole.") from error
    reporter.say(f"published {url}")
