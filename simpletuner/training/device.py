"""The device of this process, through accelerate."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from simpletuner.errors import ModelError
from simpletuner.training.ranks import PATIENCE_DEVICES, Ranks

CONTEXT = 2**29  # bytes of the driver and its libraries beside torch's, as on an H100


def choose(disable_tf32: bool, ranks: Ranks | None = None) -> torch.device:
    """The accelerator if there is one, else the CPU; one of several processes has the one of its number.

    Args:
        disable_tf32: Keep float32 products exact.
        ranks: The processes of the run, which find each other here; None where a command works in one process.

    Raises:
        ModelError: There are fewer GPUs than processes, or this command works in one process.
    """
    if ranks is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ModelError(
            "this was started as one of several processes (WORLD_SIZE > 1), and only `simpletuner train` works in several. "
            "What to do: start it without torchrun or accelerate launch."
        )
    gpus = torch.cuda.device_count()
    if ranks is not None and gpus and ranks.local >= gpus:
        raise ModelError(
            f"process {ranks.rank} of {ranks.world} has no GPU of its own: this machine has {gpus}, and {ranks.local_world} "
            "processes run on it. What to do: start as many processes as there are GPUs (num_processes)."
        )
    from accelerate import PartialState

    several = ranks is not None and ranks.several
    if several:
        # In a CUDA graph NCCL would agree on buffers with the other processes, which may be elsewhere: each captures by itself.
        os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")
    state = PartialState(cpu=not gpus, timeout=PATIENCE_DEVICES) if several else PartialState()
    device: torch.device = state.device
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("highest" if disable_tf32 else "high")
        torch.backends.cudnn.allow_tf32 = not disable_tf32  # convolutions have a switch of their own
    return device


def here() -> torch.device:
    """What ``choose`` will give, for checks that come before anything is set up."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one GPU, in bytes, as far as it is this process'.

    Attributes:
        free: What torch can still get, what it keeps unused not counted.
        total: All that torch could ever get, and the driver's context.
    """

    free: int
    total: int


def number(device: torch.device) -> int:
    """Of a GPU. A bare "cuda" is the current one, and not every call of torch's takes it."""
    return torch.cuda.current_device() if device.index is None else device.index


def memory(device: torch.device) -> Memory:
    """What a process may have of a GPU: the driver's figures, or less where a bound was set on torch."""
    index = number(device)
    free, total = torch.cuda.mem_get_info(index)
    bound = int(torch.cuda.get_per_process_memory_fraction(index) * total)
    if bound >= total:
        return Memory(free, total)
    return Memory(max(0, min(free, bound - torch.cuda.memory_reserved(index))), min(total, bound + CONTEXT))


def bound_memory(device: torch.device, limit: float) -> None:
    """Let this process have no more than ``limit`` bytes of a GPU, the driver's context among them."""
    index = number(device)
    total = torch.cuda.get_device_properties(index).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, limit - CONTEXT) / total), index)


def describe(device: torch.device) -> str:
    """A name for the log."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
    threads = torch.get_num_threads()
    return f"the CPU ({threads} thread{'s' if threads != 1 else ''})"
