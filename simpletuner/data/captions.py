"""Room 1, Find (captions): a picture's path becomes its captions.

In: a path and CaptionRules. Out: one or more alternative captions. Reads text files only; tokenises nothing.
"""

from __future__ import annotations

import hashlib
import random
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simpletuner.data.tables import CaptionTable
from simpletuner.errors import DataError

MAX_CAPTION_BYTES = 1_000_000
Strategy = Literal["filename", "textfile", "instanceprompt", "parquet", "null"]
_SEPARATORS = {"comma": (r"\s*,\s*", ", "), "period": (r"\s*\.\s*", ". "), "space": (r"\s+", " ")}


@dataclass(frozen=True, slots=True)
class Shuffle:
    """Alternative captions with their parts in another order.

    Attributes:
        count: Shuffled alternatives of each caption.
        seed: The order depends on it and on the caption alone.
        split_on: ``comma``, ``space`` or ``period``.
        position_start: Parts at the beginning that keep their place.
        include_original: Keep the caption as it is beside them.
    """

    count: int = 1
    seed: int = 0
    split_on: Literal["comma", "space", "period"] = "comma"
    position_start: int = 0
    include_original: bool = True


@dataclass(frozen=True, slots=True)
class CaptionRules:
    """How captions are found.

    Attributes:
        strategy: ``filename``, ``textfile``, ``instanceprompt``, ``parquet`` for ``table``, or ``null`` for none at all.
        instance_prompts: One or more prompts for ``instanceprompt`` and for the two flags below.
        prepend_instance_prompt: Put each instance prompt and a space before the caption.
        only_instance_prompt: Use the instance prompts and nothing else, whatever the strategy.
        whole_file: With ``textfile``: the file is one caption; otherwise each line is an alternative.
        remove: Taken out of every caption, in order; see ``clean``.
        shuffle: Alternatives with shuffled parts, or None.
        table: With ``parquet``: the table of captions, already read.
    """

    strategy: Strategy
    instance_prompts: tuple[str, ...] = ()
    prepend_instance_prompt: bool = False
    only_instance_prompt: bool = False
    whole_file: bool = False
    remove: tuple[str, ...] = ()
    shuffle: Shuffle | None = None
    table: CaptionTable | None = None

    def __post_init__(self) -> None:
        """Refuse rules that ask for an instance prompt and have none."""
        needed = self.strategy == "instanceprompt" or self.prepend_instance_prompt or self.only_instance_prompt
        if needed and not self.instance_prompts:
            raise DataError("these caption rules need an instance_prompt, and there is none: name your subject")


def captions_for(path: Path, rules: CaptionRules) -> tuple[str, ...]:
    """The captions of one picture, distinct alternatives in a stable order. Who catches an error tells the picture's name.

    Raises:
        DataError: ``textfile`` and the file beside the picture is missing or is not UTF-8 text; ``filename`` and the
            name is not UTF-8.
    """
    if rules.only_instance_prompt or rules.strategy == "instanceprompt":
        return rules.instance_prompts
    if rules.strategy == "null":
        found: tuple[str, ...] = ("",)
    elif rules.strategy == "parquet" and rules.table:
        found = rules.table.captions(path)
    else:
        found = _from_file(path, rules) if rules.strategy == "textfile" else _from_name(path)
    found = tuple(dict.fromkeys(other for caption in found for other in _alternatives(clean(caption, rules), rules)))
    if rules.prepend_instance_prompt:
        return tuple(f"{prompt} {caption}".strip() for prompt in rules.instance_prompts for caption in found)
    return found


def clean(caption: str, rules: CaptionRules) -> str:
    """The caption without what ``rules.remove`` lists.

    An entry ``s/pattern/replacement/`` (the last slash may be left out) is a regular-expression substitution. Any other
    entry is removed as it is written, and then, if it is a valid pattern, wherever it matches.
    """
    for entry in rules.remove:
        parts = entry.removesuffix("/").split("/") if entry.startswith("s/") else []
        if len(parts) == 3:
            caption = re.sub(parts[1], parts[2], caption)
            continue
        caption = caption.replace(entry, "")
        try:
            caption = re.sub(entry, "", caption)
        except re.error:
            continue
    return caption.strip()


def _alternatives(caption: str, rules: CaptionRules) -> Iterable[str]:
    """The caption, and its shuffled forms if they are asked for."""
    shuffle = rules.shuffle
    if shuffle is None:
        yield caption
        return
    if shuffle.include_original:
        yield caption
    pattern, joint = _SEPARATORS[shuffle.split_on]
    parts = [part for part in re.split(pattern, caption) if part]
    kept, free = parts[: shuffle.position_start], parts[shuffle.position_start :]
    seed = int.from_bytes(hashlib.sha256(caption.encode("utf-8", "surrogateescape")).digest()[:8], "big")
    generator = random.Random(f"{shuffle.seed}/{seed}")
    for _ in range(shuffle.count):
        yield joint.join([*kept, *generator.sample(free, len(free))])


def _from_name(path: Path) -> tuple[str, ...]:
    """The file's name without its ending, underscores being spaces."""
    try:
        path.stem.encode()
    except UnicodeEncodeError as error:
        raise DataError("its name is not UTF-8 and cannot be a caption: rename it") from error
    return (path.stem.replace("_", " "),)


def _from_file(path: Path, rules: CaptionRules) -> tuple[str, ...]:
    """Non-empty lines of the text file beside the picture, or all of it; an empty file is one empty caption."""
    file = path.with_suffix(".txt")
    try:
        text = _read_text(file)
    except FileNotFoundError as error:
        remedy = "write it, or set caption_strategy to filename (its name) or instanceprompt (one for all)"
        raise DataError(f"it has no caption: {file.name} does not exist beside it; {remedy}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"its caption, {file.name}, is not UTF-8 text: save it as UTF-8") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"its caption, {file.name}, cannot be read ({reason}): mend or replace it") from error
    if rules.whole_file:
        return (" ".join(text.split()),)
    # Not splitlines(): it also breaks at characters that may stand inside a caption, such as U+2028.
    return tuple(line.strip() for line in text.split("\n") if line.strip()) or ("",)


def _read_text(file: Path) -> str:
    """UTF-8 with or without BOM, any line ends. Looks at the kind of file first: reading a pipe would never end.

    Raises:
        DataError: It is no ordinary file, or far too large for a caption.
        OSError: It is missing or cannot be read.
        UnicodeDecodeError: It is not UTF-8, or holds zeros, as UTF-16 without a mark does.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"its caption, {file.name}, cannot be read (it is not an ordinary file): replace it")
    if status.st_size > MAX_CAPTION_BYTES:
        size = f"{status.st_size / 1e6:.1f} MB"
        raise DataError(f"its caption, {file.name}, is {size} large: is that really a caption? Shorten it")
    data = file.read_bytes()
    if (at := data.find(b"\0")) >= 0:
        raise UnicodeDecodeError("utf-8", data, at, at + 1, "zeros in the text")
    return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
