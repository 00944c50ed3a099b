"""What this program starts of itself is itself."""

import os
import subprocess
import sys
from pathlib import Path

from simpletuner import own_process


def test_another_copy_in_the_working_folder_is_not_taken(tmp_path: Path) -> None:
    """As where an installed program is started beside a checkout of another day."""
    (tmp_path / "simpletuner").mkdir()
    (tmp_path / "simpletuner" / "__init__.py").write_text("raise SystemExit('another copy')")
    command = own_process.command("simpletuner", "--version")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "simpletuner" in done.stdout.lower(), done.stdout + done.stderr
    plainly = [sys.executable, "-m", "simpletuner", "--version"]
    assert "another copy" in subprocess.run(plainly, cwd=tmp_path, capture_output=True, text=True, check=False).stderr


def test_nothing_is_started_by_name_that_could_be_another() -> None:
    sources = (own_process.HERE / "simpletuner").rglob("*.py")
    wrong = [path for path in sources if '"-m"' in path.read_text(encoding="utf-8")]
    assert not wrong
