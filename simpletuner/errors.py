"""Every error a person may meet. Each says what was wrong, where, what was found and what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


def printable(text: str) -> str:
    """Text that a terminal can show: a file name may hold control characters, or bytes that are no Unicode.

    Returns:
        The text with these as escapes; line ends and tabs stay.
    """
    whole = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if (c >= " " and c != "\x7f") or c in "\n\t" else f"\\x{ord(c):02x}" for c in whole)


# Of webhook_config these hold no secret; everything else in it may, a mistyped key included.
_PLAIN = {
    *("webhook_type", "log_level", "message_prefix", "ssl_no_verify", "allow_redirects", "allow_private_addresses"),
}


def masked(key: str, value: object) -> object:
    """A value as it may be shown: of what may be secret the host of an address, the name of a file, and nothing else.

    Args:
        key: The option, however it is written: ``--webhook-config``, ``webhook_config[0].auth_token``, a variable.
        value: What was given.
    """
    name = key.lower().replace("-", "_")
    if "webhook_config" not in name or value in (None, "", ()):
        return value
    if isinstance(value, Mapping):
        return {str(inner): masked(f"webhook_config.{inner}", item) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(key, item) for item in value]
    address = re.match(r"(https?://)(?:[^/@\s]*@)?([\w.:\[\]-]+)", str(value))
    if address:
        return f"{address[1]}{address[2]}/…"
    is_file = name.endswith("webhook_config") and not str(value).lstrip().startswith(("{", "["))
    return value if is_file or name.rpartition(".")[2] in _PLAIN else "…"


class TunerError(Exception):
    """Base of all errors that are printed as one paragraph, without a traceback."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a configuration.

    Attributes:
        file: Where it was read from (a path, "command line" or "environment").
        key: The option or dataset field, e.g. ``train_batch_size`` or ``[dreambooth].resolution``.
        value: What was found, as the user wrote it.
        reason: What is wrong with it.
        remedy: What to do about it.
    """

    file: str
    key: str
    value: object
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        found = "" if self.value == "" else f" = {masked(self.key, self.value)!r}"
        text = ": ".join(filter(None, (self.file, f"{self.key}{found}" if self.key else "", self.reason)))
        return f"{text} → {self.remedy}" if self.remedy else text


# What rules between options yield, before the file is known: key, value, reason, remedy of a Problem.
Row = tuple[str, object, str, str]


class ConfigError(TunerError):
    """The configuration cannot be used; all problems are listed at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''} in the configuration:"
        super().__init__("\n".join([head, *(f"  {i}. {p}" for i, p in enumerate(self.problems, 1))]))


class DataError(TunerError):
    """A dataset cannot be used as asked."""


class ImageError(DataError):
    """One picture cannot be read; it is skipped, counted and listed with this reason."""


class CacheError(TunerError):
    """A cache on disk is damaged or cannot be written."""


class DamagedError(CacheError):
    """One tensor of a cache is not what was written.

    Attributes:
        shard: The file that holds it.
        reason: What is wrong with it.
    """

    def __init__(self, shard: Path, reason: str) -> None:
        self.shard, self.reason = shard, reason
        super().__init__(
            f"{shard} is damaged ({reason}). "
            "What to do: delete that file and run again; only its samples are encoded anew."
        )


class ModelError(TunerError):
    """A model folder or hub repository cannot be loaded as a Sana pipeline."""


class UnreachableError(ModelError):
    """A hub cannot be asked: whether the model can be loaded is not known, which is no fault of the configuration."""


class NonFiniteError(TunerError):
    """Too many steps in a row gave NaN or infinity."""


class ResumeError(TunerError):
    """A checkpoint cannot be continued from."""


class LostProcessError(TunerError):
    """Another process of this run has ended, or does not answer; its own words say why."""
