"""The site builds without a warning (which checks every link), in both languages, and asks nobody else for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import ROOT
from pages import PAGES


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0 and "WARNING" not in run.stderr, run.stderr
    assert "not found" not in run.stderr and "not included in the" not in run.stderr, run.stderr
    return folder


class Addresses(HTMLParser):
    """Addresses that a browser fetches by itself, and those of links."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.linked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "src" or (tag == "link" and name == "href"):
                self.fetched.append(value or "")
            elif tag == "a" and name == "href":
                self.linked.append(value or "")


def addresses(page: Path) -> Addresses:
    parser = Addresses()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_in_the_repository(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    here = [link.partition("#")[0] for link in links if not re.match(r"(https?:|mailto:|#)", link)]
    assert not [link for link in here if not (page.parent / link).exists()]


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert not [a for a in addresses(page).fetched if re.match(r"(https?:)?//", a)], page
    assert "fonts.googleapis" not in (site / "index.html").read_text(encoding="utf-8")


def test_files_that_pages_link_to_are_there(site: Path) -> None:
    """Also those that lie outside docs/ in the repository."""
    missing = []
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for link in addresses(page).linked:
            path = link.partition("#")[0]
            if path and "://" not in path and not path.startswith(("mailto:", "data:")):
                target = (page.parent / path).resolve()
                if not (target.is_file() or (target / "index.html").is_file()):
                    missing.append(f"{page.relative_to(site)} → {link}")
    assert not missing
    assert list((site / "source").rglob("*.py.txt")) and (site / "bench" / "RESULTS.html").is_file()


@pytest.mark.parametrize(("page", "language", "word"), [("quickstart", "en", "Next"), ("es/guia", "es", "Anterior")])
def test_a_page_speaks_its_language(site: Path, page: str, language: str, word: str) -> None:
    text = (site / f"{page}.html").read_text(encoding="utf-8")
    assert f'<html lang="{language}"' in text and word in text


def test_every_page_of_docs_can_be_reached(site: Path) -> None:
    """From the navigation, or by a link of a page."""
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in site.rglob("*.html") if page.name != "404.html"
        for link in addresses(page).linked if "://" not in link
    }  # fmt: skip
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).resolve() in linked, page
