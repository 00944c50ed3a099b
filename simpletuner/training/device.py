"""The device of this process, through accelerate."""

from __future__ import annotations

import os

import torch

from simpletuner.errors import ModelError


def choose(disable_tf32: bool) -> torch.device:
    """The accelerator if there is one, else the CPU.

    Raises:
        ModelError: Started as one of several processes, which is not supported yet.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ModelError(
            "this was started as one of several processes (WORLD_SIZE > 1); training on several GPUs is not "
            "supported yet. What to do: start it without torchrun or accelerate launch."
        )
    from accelerate import PartialState

    device: torch.device = PartialState().device
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if disable_tf32 else "high")
    return device


def here() -> torch.device:
    """What ``choose`` will give, for checks that come before anything is set up."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe(device: torch.device) -> str:
    """A name for the log."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
    threads = torch.get_num_threads()
    return f"the CPU ({threads} thread{'s' if threads != 1 else ''})"
