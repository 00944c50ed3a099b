"""What mkdocs needs to be told: pages that lie outside docs/, links to files of the program, and Spanish words around Spanish pages.

In: the pages of docs/. Out: the same; CHANGELOG, CONTRIBUTING and bench/RESULTS.md as pages, and every other file that a
page links to as a text beside them. Markdown stays as it reads in the repository: links are turned only in the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "bench/RESULTS.md")
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?\)")


def _named(nav: Any) -> set[str]:
    """Every page that a navigation names."""
    if isinstance(nav, str):
        return {nav}
    return {name for part in (nav.values() if isinstance(nav, dict) else nav) for name in _named(part)}


def on_config(config: Any) -> Any:
    """A page of docs/ that the navigation does not name yet stands at the end of How-to, under its own title."""
    known = _named(config.nav)
    how_to = next(section["How-to"] for section in config.nav if "How-to" in section)
    for page in sorted((ROOT / "docs").glob("*.md")):
        if page.name not in known:
            how_to.append({page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# "): page.name})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie outside docs/."""
    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links that leave docs/ into links to what the site has."""
    source = page.file.src_uri
    inside = source not in PAGES
    home = posixpath.dirname(f"docs/{source}" if inside else source)

    def turned(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(home, match[2]))
        here = posixpath.dirname(source) or "."
        if target.startswith("docs/"):
            wanted = target.removeprefix("docs/")
        elif target in PAGES:
            wanted = target
        elif (ROOT / target).is_file():
            wanted = f"source/{target}{'' if Path(target).suffix in ('.png', '.webp') else '.txt'}"
            if files.get_file_from_path(wanted) is None:
                added = File.generated(config, wanted, content=(ROOT / target).read_bytes())
                files.append(added)
        else:
            return match[0]
        return f"{match[1]}{posixpath.relpath(wanted, here)}{match[3] or ''})"

    return LINK.sub(turned, markdown)


def on_page_context(context: Any, page: Any, config: Any, nav: Any) -> Any:
    """The theme speaks the page's language."""
    config.theme["language"] = "es" if page.file.src_uri.startswith("es/") else "en"
    return context
