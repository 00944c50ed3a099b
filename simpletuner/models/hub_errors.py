"""What a hub's refusal means for a person: why, and what to do. Pure functions over the client's exceptions; asks nobody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those it came from: diffusers and transformers wrap the client's."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def status(error: BaseException) -> int | None:
    """The HTTP status that the hub answered with, if it did."""
    for one in _chain(error):
        code = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(code, int):
            return code
    return None


def why(error: BaseException, repository: str, revision: str | None = None) -> tuple[str, str] | None:
    """Reason and remedy.

    Args:
        error: What the client, or a library over it, raised.
        repository: ``owner/name``.
        revision: What was asked for, or None for main.

    Returns:
        None where the hub said nothing that is known here.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.errors import RevisionNotFoundError as NoRevision

    errors = list(_chain(error))

    def any_of(kind: type | tuple[type, ...]) -> bool:
        return any(isinstance(one, kind) for one in errors)

    if any_of(GatedRepoError):  # before the next, of which it is one
        page = f"{constants.ENDPOINT}/{repository}"
        return (
            "its owner wants its licence accepted first, and the hub does not know that you did",
            f"accept it at {page}, then log in with `hf auth login` (or set HF_TOKEN)",
        )
    if any_of(NoRevision):
        return f"it has no revision {revision!r}", "correct revision, or leave it out"
    if any_of(RepositoryNotFoundError):
        return (
            "the hub has no such model, or it is private and you are not logged in",
            "check the spelling; for a private model `hf auth login` (or HF_TOKEN)",
        )
    if any_of(RemoteEntryNotFoundError):
        return (
            "the repository does not hold that file",
            "name a Sana pipeline in diffusers' layout, or another revision",
        )
    return _by_status(status(error))


_LOGIN = "log in again with `hf auth login` (or correct HF_TOKEN); the token needs the right to do this"


def _by_status(code: int | None) -> tuple[str, str] | None:
    if code is None:
        return None
    said: dict[int, tuple[str, str]] = {
        401: ("the hub does not accept your login", _LOGIN),
        403: ("the hub does not allow it with your login", _LOGIN),
        404: ("the hub has nothing of that name", "check the spelling"),
        413: ("the hub finds it too large", "see the limits of your account"),
        429: ("the hub asks for a pause: there were too many requests", "try again in some minutes"),
    }
    if code >= 500:
        return f"the hub has a fault of its own (it answered {code})", "try again later; what was done is kept"
    return said.get(code)


def passing(error: BaseException) -> bool:
    """Whether trying again may help: no connection, a pause asked for, a fault of the hub's own."""
    code = status(error)
    return code is None or code in (408, 429) or code >= 500


def sentence(error: BaseException, repository: str, *arguments: Any) -> str:
    """Reason and remedy in one, or the error's kind and first line."""
    known = why(error, repository, *arguments)
    if known:
        return f"{known[0]}. What to do: {known[1]}"
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]]).rstrip(".")
