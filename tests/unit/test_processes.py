"""What tests start is gone when they are, also where they fail."""

import subprocess
import sys

import psutil
import pytest
from processes import ended, until

PARENT = "import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1).pid, flush=True); time.sleep(60)"


def test_a_process_and_its_own_end_with_the_block_that_fails() -> None:
    with (
        pytest.raises(ZeroDivisionError),
        ended(subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)) as process,
    ):
        assert process.stdout
        child = psutil.Process(int(process.stdout.readline()))
        assert child.is_running() and process.poll() is None
        raise ZeroDivisionError
    assert process.returncode == -9
    assert psutil.wait_procs([child], timeout=10)[1] == []


def test_what_is_never_reached_is_no_success() -> None:
    """A process that has ended will do nothing more; what it said is in the failure."""
    command = [sys.executable, "-c", "print('no room')"]
    with ended(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as process:
        with pytest.raises(AssertionError, match="no room"):
            until(lambda: False, process)
        until(lambda: process.poll() is not None, process)
