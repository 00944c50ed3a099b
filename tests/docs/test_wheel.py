"""The wheel holds the whole package: the pocket and its pictures, pages, examples, and every module."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from conftest import ROOT

SOURCES = ("simpletuner", "pyproject.toml", "README.md")


def test_it_holds_every_file_of_the_package(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, tree / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    run = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("simpletuner-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("simpletuner/")}
        about = archive.read(next(n for n in archive.namelist() if n.endswith("entry_points.txt"))).decode()
    files = {path.relative_to(tree).as_posix() for path in (tree / "simpletuner").rglob("*") if path.is_file()}
    assert held == files
    for needed in ("pocket/model/preview_decoder/", "pocket/blueprint/train/", "reporting/dashboard/assets/", "config/examples/",
                   "pocket/LICENSES.md", "evaluation/font/LICENSE", "py.typed"):  # fmt: skip
        assert any(name.startswith(f"simpletuner/{needed}") for name in held), needed
    assert "simpletuner = simpletuner.cli.app:main" in about
