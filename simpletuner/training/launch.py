"""Start a run in several processes: torchrun around the same command, in this process.

In: how many, on which machines, and the words of the command. Out: an exit status. Trains nothing and loads no model.

Ctrl-C, SIGTERM and SIGHUP are passed on, once for each, and then waited for: the processes stop after a step and its checkpoint,
however long that takes. Torchrun's own way would kill them after 30 seconds.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from simpletuner import own_process
from simpletuner.errors import TunerError, printable
from simpletuner.signals import handled, hangup

INTERRUPTED = 130
RENDEZVOUS_S = 900  # machines may be started one after another


@dataclass(frozen=True, slots=True)
class Launch:
    """Where the processes run.

    Attributes:
        processes: Over all machines.
        machines: How many share them evenly.
        machine_rank: Which this is, from 0.
        address: Of machine 0, where there are several.
        port: On machine 0.
    """

    processes: int
    machines: int = 1
    machine_rank: int = 0
    address: str = ""
    port: int = 29500

    @property
    def here(self) -> int:
        """Processes on this machine."""
        return self.processes // self.machines

    def check(self, gpus: int) -> None:
        """Raises TunerError where this machine has GPUs, but too few."""
        if gpus and self.here > gpus:
            raise TunerError(
                f"num_processes asks for {self.here} processes on this machine, and it has {gpus} "
                f"GPU{'s' if gpus > 1 else ''}. What to do: set num_processes to at most {gpus * self.machines}."
            )

    def config(self) -> LaunchConfig:
        """For torchrun: nothing is started twice."""
        several = self.machines > 1
        return LaunchConfig(
            min_nodes=self.machines,
            max_nodes=self.machines,
            nproc_per_node=self.here,
            logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # its own would stay behind in a folder for each run
            run_id="simpletuner" if several else uuid.uuid4().hex,
            rdzv_backend="static" if several else "c10d",
            rdzv_endpoint=f"{self.address}:{self.port}" if several else "localhost:0",
            rdzv_configs={"rank": self.machine_rank, "timeout": RENDEZVOUS_S} if several else {},
            local_addr=None if several else "localhost",
            max_restarts=0,
            signals_to_handle="SIGQUIT",
        )


def launch(asked: Launch, words: Sequence[str]) -> int:
    """Run ``simpletuner`` with these words in every process, and wait for the end.

    Returns:
        0, 130 where the run was interrupted, or 1.

    Raises:
        TunerError: This machine has too few GPUs.
    """
    asked.check(torch.cuda.device_count())
    # Each process would take every core for itself, and they would wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // asked.here)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it is told in plain words here
    try:
        with handled(_pass_on, signal.SIGINT, signal.SIGTERM, *hangup()):
            program, *start = own_process.command("simpletuner", *words)
            elastic_launch(asked.config(), program)(*start)
    except ChildFailedError as error:
        return _told(error, asked.processes)
    return 0


def _told(error: ChildFailedError, processes: int) -> int:
    """The exit status; a process that could say nothing itself is named."""
    if any(failure.exitcode == INTERRUPTED for failure in error.failures.values()):
        return INTERRUPTED
    stopped = signal.SIGTERM if any(f.exitcode != -signal.SIGTERM for f in error.failures.values()) else None
    for rank, failure in error.failures.items():
        if failure.exitcode < 0 and -failure.exitcode != stopped:  # the others were told to end because of it
            name = signal.Signals(-failure.exitcode).name
            why = " (most often the machine had no memory left)" if name == "SIGKILL" else ""
            text = f"Error: process {rank} of {processes} (pid {failure.pid}) was ended by {name}{why}; the others were stopped. "
            print(printable(text + "The same command goes on from the last checkpoint."), file=sys.stderr)
    return 1


def _pass_on(number: int, frame: object) -> None:
    """A signal goes to the processes, which have a session of their own and would not hear it."""
    children = psutil.Process().children()
    if not children:  # still waiting for other machines
        raise KeyboardInterrupt
    for child in children:
        child.send_signal(number)
