"""One commit to a model hub, with pauses between tries. Also a program of its own, which a run starts beside itself.

In: files, texts and a repository. Out: the repository's address. It imports no torch, and of the program three small modules, so
that the process that uploads is small, and can be ended at any time: a commit is there whole or not at all. The token is
read by the hub's own client and stands in no message.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from simpletuner.errors import TunerError
from simpletuner.models import hub_errors
from simpletuner.reporting.masking import masked_text

PAUSES_S = (5.0, 20.0, 60.0, 180.0)


@dataclass(frozen=True, slots=True)
class Upload:
    """What one commit holds.

    Attributes:
        repository: ``owner/name``, or ``name`` with the owner that is logged in.
        private: Whether a repository that has to be made is private.
        message: Of the commit.
        files: Path in the repository → file here.
        texts: Path in the repository → its content, in which ``placeholder`` stands for the repository. With neither
            files nor texts the repository is made, and nothing committed.
        pauses: Seconds before each further try.
    """

    repository: str
    private: bool
    message: str
    files: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    pauses: Sequence[float] = PAUSES_S


class PublishError(TunerError):
    """An upload failed, for good or after all tries."""


def placeholder(repository: str) -> str:
    """What stands in texts for a repository whose owner only the hub knows."""
    return repository if "/" in repository else f"OWNER/{repository}"


def push(upload: Upload, say: Callable[[str], None]) -> str:
    """Make the repository if it is not there, and commit everything at once.

    Args:
        upload: What and where.
        say: Told before each further try.

    Returns:
        The repository's address.

    Raises:
        PublishError: Why, and what to do.
    """
    for number, pause in enumerate([*upload.pauses, None]):
        try:
            return _push(upload)
        except Exception as error:  # whatever a client or a disk says is told in one way
            reason = masked_text(hub_errors.sentence(error, upload.repository))
            lost = isinstance(error, FileNotFoundError)
            if pause is None or lost or isinstance(error, ValueError) or not hub_errors.passing(error):
                raise PublishError(reason) from error
            say(f"the upload to {upload.repository} failed (try {number + 1}): {reason}. Trying again in {pause:g} s")
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _push(upload: Upload) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(library_name="simpletuner")
    url = api.create_repo(upload.repository, private=upload.private, exist_ok=True)
    operations = [CommitOperationAdd(name, Path(path)) for name, path in upload.files.items()]
    for name, text in upload.texts.items():
        operations.append(CommitOperationAdd(name, text.replace(placeholder(upload.repository), url.repo_id).encode()))
    if not operations:
        return str(url)
    # Not upload_folder: it makes several commits where there are many files.
    api.create_commit(url.repo_id, operations, commit_message=upload.message)
    return str(url)


def encode(upload: Upload) -> str:
    """For the standard input of this program."""
    return json.dumps(asdict(upload))


def main() -> None:
    """Read an upload, do it, and print JSON lines: ``said`` along the way, then ``url`` or ``error``."""

    def tell(**values: str) -> None:
        print(json.dumps(values), flush=True)

    try:
        tell(url=push(Upload(**json.load(sys.stdin)), lambda text: tell(said=text)))
    except PublishError as error:
        tell(error=str(error))


if __name__ == "__main__":
    main()
