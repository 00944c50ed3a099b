"""The real `simpletuner doctor`."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import time
from pathlib import Path

from conftest import ROOT, Command, command_line


def test_it_is_clean_here_and_never_shows_the_token(simpletuner: Command) -> None:
    began = time.monotonic()
    done = simpletuner("doctor", HF_TOKEN="hf_secretSecretSecret")
    assert time.monotonic() - began < 30, "five seconds on a machine that does nothing else"
    lines = done.stdout.splitlines()
    assert all(line.split()[0] in ("OK", "note") for line in lines[:-1]) and lines[-1].startswith(
        "This machine can train"
    )
    assert "a token is there (from HF_TOKEN)" in done.stdout and "secret" not in (done.stdout + done.stderr).lower()
    for what in ("Python:", "torch:", "Packages:", "Output:", "Main memory:", "HF_HUB_OFFLINE is set"):
        assert what in done.stdout, what
    assert "pip install simpletuner" not in done.stdout


def test_a_folder_that_cannot_be_made_is_a_problem_and_exit_code_1(simpletuner: Command, tmp_path: Path) -> None:
    (tmp_path / "output").write_text("a file where the folder would be")
    done = simpletuner("doctor", check=False)
    assert done.returncode == 1 and "problem  Output: output cannot be made" in done.stdout
    assert done.stdout.endswith("1 to mend: see the lines that begin with problem.\n")


def test_an_environment_without_some_packages(tmp_path: Path) -> None:
    """The installed packages without bitsandbytes, and without torch: as in an environment that lacks them."""
    reduced = tmp_path / "site"
    reduced.mkdir()
    for folder in map(Path, site.getsitepackages()):
        for entry in folder.iterdir() if folder.is_dir() else ():
            if not entry.name.lower().startswith(("bitsandbytes", "torch-", "torch", "__editable__")):
                (reduced / entry.name).symlink_to(entry)
    start = [sys.executable, "-S", *command_line("doctor")[1:]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(reduced)])}
    done = subprocess.run(start, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "problem  Package: torch is not installed" in done.stdout
    assert "problem  torch: it cannot be imported" in done.stdout
