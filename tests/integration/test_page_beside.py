"""``simpletuner train --dashboard`` with the real command: the page is there, acts, and ends with the run."""

import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from conftest import own_environment, started
from dashboard_server import Dashboard
from processes import ended

from simpletuner.reporting.run_folder import read_object


def test_a_run_with_its_page_is_stopped_from_there(tmp_path: Path, pocket_run: Callable[..., Path]) -> None:
    config = pocket_run(
        dashboard=True, max_train_steps=2000, validation_disable=True, report=True, checkpoint_step_interval=0
    )
    said: list[str] = []
    with started("train", "--config", config, cwd=tmp_path) as process:
        assert process.stdout
        for line in process.stdout:
            said.append(line)
            if line.startswith("Dashboard: "):
                page = Dashboard(line.removeprefix("Dashboard: ").strip(), process)
                assert page.ask("/api/runs")[0] == 200
                while process.poll() is None and page.ask("/api/runs/0/control/stop", "POST", **page.acting)[0] != 202:
                    time.sleep(0.1)
    text = "".join(said)
    assert "Stopped at step" in text
    assert "To look again: simpletuner dashboard" in text
    assert read_object(tmp_path / "out" / "run.json")["status"] == "interrupted"
    assert read_object(tmp_path / "out" / "dataset_sheet.json")["datasets"][0]["pictures"]
    assert gone(page.address)
    token = page.address.partition("token=")[2]
    assert token and not any(token in file.read_text() for file in (tmp_path / "out").glob("*.json*"))


def test_the_page_of_a_killed_run_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from simpletuner.training.page_beside import page_beside\n"
        "with page_beside(Path(sys.argv[1]), None, lambda text: print(text, flush=True)): time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with ended(subprocess.Popen(command, env=own_environment(), stdout=subprocess.PIPE, text=True)) as process:
        assert process.stdout
        found = re.match(r"Dashboard: (\S+)", process.stdout.readline())
        assert found
        assert not gone(found[1], seconds=0)
        process.kill()
        process.wait(10)
        assert gone(found[1])


def gone(address: str, seconds: float = 8.0) -> bool:
    """Whether nobody answers there any more, at last."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except (urllib.error.URLError, ConnectionError):
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(0.1)
