"""One line of what `simpletuner doctor` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Line:
    """Something that was looked at.

    Attributes:
        state: ``OK``; ``note``: training runs all the same; ``problem``: it does not, or not as it should.
        what: The thing, in a word or two.
        found: How it is.
        remedy: What to do, or "".
    """

    state: Literal["OK", "note", "problem"]
    what: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        end = f". What to do: {self.remedy}" if self.remedy else ""
        return f"{self.state:<8} {self.what}: {self.found}{end}"
