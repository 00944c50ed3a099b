"""Options of runs on several GPUs, and their rules; a part of ``options`` and ``rules``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from simpletuner.config.section import Positive, Section
from simpletuner.errors import Row

if TYPE_CHECKING:
    from simpletuner.config.options import Options

# Variables of the original program's launcher.
THEIRS = {"TRAINING_NUM_PROCESSES": "num_processes", "TRAINING_NUM_MACHINES": "num_machines"}


class ProcessOptions(Section):
    """Several GPUs."""

    num_processes: Positive = Field(
        1,
        description="Processes of the run, one for each GPU, over all machines; train_batch_size is for each of them.",
    )
    num_machines: Positive = Field(1, description="Machines that share them evenly; the same command runs on each.")
    machine_rank: Annotated[int, Field(ge=0)] = Field(0, description="Which of the machines this is, from 0.")
    main_process_ip: str | None = Field(None, description="Address of machine 0, as the others reach it.")
    main_process_port: Annotated[int, Field(ge=1, le=65535)] = Field(29500, description="A free port on machine 0.")


def is_one_of_several(environ: Mapping[str, str]) -> bool:
    """Whether torchrun, or who works like it, started this process and says which it is; it may be the only one."""
    return all(environ.get(name, "").isdigit() for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))


def from_launcher(environ: Mapping[str, str]) -> dict[str, str]:
    """Options by key, as whoever started this process has set them in its environment."""
    if not is_one_of_several(environ):
        return {key: environ[name] for name, key in THEIRS.items() if environ.get(name)}
    found = {"num_processes": environ["WORLD_SIZE"], "num_machines": environ.get("GROUP_WORLD_SIZE", "1")}
    if found["num_machines"] != "1":
        names = {"machine_rank": "GROUP_RANK", "main_process_ip": "MASTER_ADDR", "main_process_port": "MASTER_PORT"}
        found |= {key: environ[name] for key, name in names.items() if environ.get(name)}
    return found


def process_problems(options: Options) -> Iterator[Row]:
    """Combinations that cannot be started, or cannot train."""
    asked, training = options.processes, options.training
    if asked.num_processes % asked.num_machines:
        reason = f"{asked.num_machines} machines (num_machines) cannot share them evenly"
        yield ("num_processes", asked.num_processes, reason, "it counts the processes of all machines together")
    if asked.machine_rank >= asked.num_machines:
        reason = f"there are {asked.num_machines} machines (num_machines), counted from 0"
        yield ("machine_rank", asked.machine_rank, reason, "0 is the first machine")
    if asked.num_machines > 1 and not asked.main_process_ip:
        reason = "the other machines must find the first one"
        yield ("main_process_ip", None, reason, "set it, and main_process_port, to the same values on each")
    if asked.num_processes > 1 and training.releases_gradients():
        key = "fuse_optimizer" if training.fuse_optimizer else "optimizer_release_gradients"
        reason = "gradients are gone before the processes could average them (num_processes)"
        yield (key, True, reason, "remove it, or train in one process")


def process_without_effect(options: Options, where: Mapping[str, str]) -> Iterator[str]:
    """Sentences about options that are given but change nothing beside the others."""
    if options.processes.num_machines == 1:
        for key in ("main_process_ip", "main_process_port"):
            if key in where:
                yield f"{key} has no effect: num_machines is 1"
