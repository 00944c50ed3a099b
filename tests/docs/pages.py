"""The documentation as its tests see it: pages, and their blocks of code.

Conventions, for who writes a page:

- A block of ``json`` is a dataloader file (a list of entries with ``id``), webhooks (``webhook_type``), a LyCORIS file
  (``algo``), answers for `simpletuner configure` (``kind``) or options of config.json, and is told by its keys. Anything else says what it is in a comment on the line
  before it: ``<!-- json: prompt library -->``, or ``<!-- json: metrics -->`` for what the program writes.
- ``title="config/config.json"`` says which file a block is; tests that run commands write it there.
- A block of ``bash`` holds commands as they are typed; ``<!-- run: NAME -->`` before it says that tests run it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"(?:<!-- ([^\n]*?) -->\n)?^( *)```(\w+)([^\n]*)\n(.*?)^\2```", re.M | re.S)
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "simpletuner/pocket/README.md",
    ]
)


@dataclass(frozen=True, slots=True)
class Block:
    """One block of code.

    Attributes:
        page: Path of the page from the repository's root.
        line: Where it begins.
        language: ``json``, ``bash``, ``python`` …
        title: The file that it is, or nothing.
        mark: The comment before it, or nothing.
        text: Its content.
    """

    page: str
    line: int
    language: str
    title: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> Iterator[Block]:
    """Every block in these languages, page by page."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            mark, indent, language, info, body = match.groups()
            if language in languages:
                title = re.search(r'title="([^"]+)"', info)
                line = text.count("\n", 0, match.start(3)) + 1
                lines = "\n".join(row.removeprefix(indent) for row in body.split("\n"))
                yield Block(
                    page.relative_to(ROOT).as_posix(), line, language, title[1] if title else "", mark or "", lines
                )
