"""The real command in a process of its own, forked from one in which its libraries are imported already.

Importing torch, diffusers and transformers takes several processor seconds, most of a short run. So each process of
tests has one process beside it that imports them once, and nothing of this program; every command is a fork of that:
it has its folder, words, output and end to itself, and imports this program anew. Variables of the environment may be
read while a library is imported, so a command that has some of its own is started afresh (see ``conftest.py``).
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MOST_BYTES = 1 << 16
# The command's own program runs in each fork's `__main__`, as with `python -c`.
PROGRAM = """
import sys
sys.path.insert(1, {folder!r})
from forked_command import import_libraries, program_of_a_fork
del sys.path[1]
{imports}
exec(program_of_a_fork({number}))
"""


def import_libraries() -> None:
    """What a training imports of other people's, in the program's own way, which is then forgotten; starts no threads."""
    from simpletuner.models.imports import libraries

    libraries()
    import torch.distributed.launcher.api  # noqa: F401

    for name in [name for name in sys.modules if name.partition(".")[0] == "simpletuner"]:
        del sys.modules[name]


def program_of_a_fork(number: int) -> str:
    """Fork for each command that comes through socket ``number``; returns in the forks alone."""
    channel = socket.socket(fileno=number)
    gc.collect()
    gc.freeze()
    while True:
        message, files, _, _ = socket.recv_fds(channel, MOST_BYTES, 2)
        if not message:
            os._exit(0)
        threads = os.listdir("/proc/self/task")
        assert len(threads) == 1, f"a fork would lose {len(threads) - 1} threads of the imported libraries"
        child = os.fork()
        if child == 0:
            channel.close()
            asked = json.loads(message)
            with open(os.devnull) as nothing:
                os.dup2(nothing.fileno(), 0)
            for ours, theirs in zip((1, 2), files, strict=True):
                os.dup2(theirs, ours)
                os.close(theirs)
            os.chdir(asked["folder"])
            sys.argv[1:] = asked["words"]
            forget_names(vars(sys.modules["__main__"]))
            return str(asked["program"])
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        channel.send(str(os.waitstatus_to_exitcode(status)).encode())


def forget_names(main: dict[str, object]) -> None:
    """What was imported stays so, but a program has to import it by itself to name it."""
    for name in [name for name in main if not name.startswith("__")]:
        del main[name]


class Forker:
    """The process that waits for commands, started with the first; ``imports`` are its first lines."""

    def __init__(self, environment: dict[str, str], imports: str = "import_libraries()") -> None:
        self.environment, self.imports = environment, imports
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it anew."""
        self.end()
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = PROGRAM.format(folder=str(Path(__file__).parent), number=theirs.fileno(), imports=self.imports)
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            env={**self.environment, "OPENBLAS_NUM_THREADS": "1"},  # numpy would start threads where it is imported
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()

    def run(self, program: str, words: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
        """``python -c program words`` in a folder, its output as text; waits for whoever else holds the output, too."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        assert self.process
        readers, writers = zip(os.pipe(), os.pipe(), strict=True)
        asked = json.dumps({"program": program, "words": words, "folder": str(folder)}).encode()
        try:
            socket.send_fds(self.channel, [asked], writers)
        finally:
            for writer in writers:
                os.close(writer)
        with ThreadPoolExecutor(2) as pool:
            texts = [pool.submit(text_of, reader) for reader in readers]
            try:
                said = [text.result() for text in texts]
                status = self.channel.recv(64)
            except BaseException:  # a test's time is over: the readers end with the writers
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                raise
        assert status, "the process that forks is gone"
        return subprocess.CompletedProcess([*words], int(status), *said)

    def end(self) -> None:
        """Let it go, if it runs."""
        if self.process:
            self.channel.close()
            self.process.wait()


def text_of(file: int) -> str:
    """Read a pipe to its end."""
    with open(file, encoding="utf-8") as stream:
        return stream.read()
