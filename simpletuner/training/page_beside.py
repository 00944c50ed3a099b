"""The dashboard of a run as a process of its own, for as long as the run lasts.

In: the output folder. Out: a line with the address. The two share nothing but files, so the page can neither slow nor
stop training. Its end is the end of a pipe: also a run that is killed takes its page along.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

ENDING_S = 5.0


@contextmanager
def page_beside(output_dir: Path, port: int | None, say: Callable[[str], None]) -> Iterator[None]:
    """Serve the page of ``output_dir`` around a run.

    Args:
        output_dir: Made if missing.
        port: None for the usual one or any free one.
        say: Is told the address, from another thread, or why there is no page; the run goes on in any case.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", "from simpletuner.cli.app import main; main()", "dashboard", "--beside"]
    command += [f"--port={port}"] if port else []
    process = subprocess.Popen(
        [*command, "--", str(output_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C is for the run, which then ends the page
    )
    assert process.stdin and process.stdout
    teller = threading.Thread(target=_tell, args=(process.stdout, say), daemon=True)
    teller.start()
    try:
        yield
    finally:
        process.stdin.close()
        try:
            process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        teller.join(ENDING_S)
        process.stdout.close()
        say(
            f"The dashboard has ended with the run. To look again: simpletuner dashboard {shlex.quote(str(output_dir))}"
        )


def _tell(stream: TextIO, say: Callable[[str], None]) -> None:
    """Its first line is the address, or what is wrong; whatever follows is read so that the pipe never fills."""
    for number, line in enumerate(stream):
        if number == 0:
            say(line.rstrip() if line.startswith("Dashboard: ") else f"The dashboard did not start. {line.rstrip()}")
