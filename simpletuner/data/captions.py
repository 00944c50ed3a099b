"""Room 1, Find (captions): a picture's path becomes its captions.

In: a path and CaptionRules. Out: one or more alternative captions. Reads text files only; tokenises nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simpletuner.errors import DataError

Strategy = Literal["filename", "textfile", "instanceprompt"]


@dataclass(frozen=True, slots=True)
class CaptionRules:
    """How captions are found.

    Attributes:
        strategy: ``filename``, ``textfile`` or ``instanceprompt``.
        instance_prompts: One or more prompts for ``instanceprompt`` and for the two flags below.
        prepend_instance_prompt: Put each instance prompt and a space before the caption.
        only_instance_prompt: Use the instance prompts and nothing else, whatever the strategy.
    """

    strategy: Strategy
    instance_prompts: tuple[str, ...] = ()
    prepend_instance_prompt: bool = False
    only_instance_prompt: bool = False

    def __post_init__(self) -> None:
        """Refuse rules that ask for an instance prompt and have none."""
        needed = self.strategy == "instanceprompt" or self.prepend_instance_prompt or self.only_instance_prompt
        if needed and not self.instance_prompts:
            raise DataError("these caption rules need an instance_prompt, and there is none: name your subject")


def captions_for(path: Path, rules: CaptionRules) -> tuple[str, ...]:
    """The captions of one picture, alternatives in a stable order.

    Raises:
        DataError: ``textfile`` and the file beside the picture is missing or is not UTF-8 text.
    """
    if rules.only_instance_prompt or rules.strategy == "instanceprompt":
        return rules.instance_prompts
    found = _from_file(path) if rules.strategy == "textfile" else (path.stem.replace("_", " "),)
    if rules.prepend_instance_prompt:
        return tuple(f"{prompt} {caption}".strip() for prompt in rules.instance_prompts for caption in found)
    return found


def _from_file(path: Path) -> tuple[str, ...]:
    """Non-empty lines of the text file beside the picture; an empty file is one empty caption."""
    file = path.with_suffix(".txt")
    try:
        text = file.read_text(encoding="utf-8-sig")  # with or without BOM, any line ends
    except FileNotFoundError as error:
        raise DataError(f"{path.name} has no caption: {file.name} does not exist beside it") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the caption of {path.name}, {file.name}, is not UTF-8 text: save it as UTF-8") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"the caption of {path.name}, {file.name}, cannot be read ({reason})") from error
    # Not splitlines(): it also breaks at characters that may stand inside a caption, such as U+2028.
    return tuple(line.strip() for line in text.split("\n") if line.strip()) or ("",)
