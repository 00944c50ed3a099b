"""Part of the composition root: how training steps run, from the option, the device and what is trained.

In: plain values. Out: the ways that are in force, and a sentence that says so. Changes nothing but the blocks' forward.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from simpletuner.models.base import Family, LoadSource
from simpletuner.training import eight_bits
from simpletuner.training.precision import Precision
from simpletuner.training.trainee import Trainee
from simpletuner.wording import install

Forward = Literal["auto", "fast", "plain", "diffusers"]
# Tokens: five lengths of text up to 300, so as many graphs for a picture size. In larger batches the longest captions are
# nearly equally long, so half of it makes hardly more graphs, and half a percent of all products falls away.
TEXT_MULTIPLE, LARGE_BATCH = 64, 4
GUARDED = ("optimi-adamw", "adamw_bf16", "torch-adamw", "ao-adamw8bit")  # optimizers whose step a GPU guards itself
OLDEST = (8, 0)  # compute capability: the first with bf16


def guards(optimizer: str, arguments: Mapping[str, Any], half: bool) -> bool:
    """Whether a GPU guards this optimizer's step itself: what its ``guarded_step`` will say, before it is there.

    Args:
        optimizer: Its name.
        arguments: That were given.
        half: Trained weights are bf16.
    """
    off = {name for name, value in arguments.items() if value is False}
    on = {name for name, value in arguments.items() if value}
    hindered = {
        "optimi-adamw": bool("decouple_lr" in on or (half and "kahan_sum" in off)),
        "adamw_bf16": False,
        "torch-adamw": half or bool({"amsgrad", "maximize"} & on),
        "ao-adamw8bit": "amsgrad" in on
        or arguments.get("block_size", eight_bits.BLOCK) != eight_bits.BLOCK
        or (half and "bf16_stochastic_round" in off),
    }
    return optimizer in GUARDED and not hindered[optimizer]


@dataclass(frozen=True, slots=True)
class Ways:
    """How steps run.

    Attributes:
        forward: Of the blocks; ``auto`` is decided here.
        compiled: Blocks are compiled.
        said: For the log; "" where there is nothing to say.
    """

    forward: Literal["fast", "plain", "diffusers"]
    compiled: bool = False
    said: str = ""


def text_multiple(wanted: Forward, device: torch.device, batch: int) -> int:
    """Tokens whose multiples text is padded to; 1, no padding, where no step is compiled or captured for a length."""
    if device.type != "cuda" or wanted not in ("auto", "fast"):
        return 1
    return TEXT_MULTIPLE if batch < LARGE_BATCH else TEXT_MULTIPLE // 2


def obstacle(device: torch.device, precision: Precision) -> str | None:
    """Why the fast way cannot run here, None if it can."""
    if device.type != "cuda":
        return "it needs an NVIDIA GPU"
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed: {install('cuda')}"
    if c_compiler() is None:
        return "Triton needs a C compiler: install gcc"
    if torch.cuda.get_device_capability(device) < OLDEST:
        return "this GPU is older than Ampere"
    if other := not_in_bf16(precision):
        return other
    keep_compiled()
    return cannot_compile(device)


def not_in_bf16(precision: Precision) -> str | None:
    """Why the fast way cannot run in these dtypes, whatever the device; None if it can."""
    if torch.bfloat16 in (precision.weights, precision.base, precision.autocast):
        return None
    return "its kernels are measured in bf16 alone: set mixed_precision to bf16"


def c_compiler() -> str | None:
    """The C compiler that Triton will find, or None."""
    return next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)


def keep_compiled() -> None:
    """Let what is compiled lie where the next run finds it, also after the machine was started anew.

    The compilers' own place is the folder for temporary files. What the user has set stays.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simpletuner"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(home / "triton"))


def cannot_compile(device: torch.device) -> str | None:
    """Compile and run one small kernel; why that fails, None if it works. A second when it is new, nothing afterwards."""
    try:
        torch.compile(_small)(torch.ones(64, device=device, dtype=torch.bfloat16)).item()
    # What the compilers raise themselves is a RuntimeError; a missing tool, header or library is one of the others.
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"a first kernel cannot be compiled here ({first[:200]})"
    return None


def _small(x: torch.Tensor) -> torch.Tensor:
    return (x.float().sin() + 1).sum()


def kernels_ahead(
    family: Family, source: LoadSource, wanted: Forward, device: torch.device, precision: Precision
) -> Callable[[], None]:
    """Start compiling the kernels while the model is still being loaded; returns what waits for the end.

    The first time on a machine that is half a minute of one core; afterwards they come from Triton's cache. Where the fast
    way is not to run, there is nothing to wait for.
    """
    if wanted not in ("auto", "fast") or obstacle(device, precision):
        return lambda: None
    return family.compile_ahead(source, torch.bfloat16, device, adapter=precision.base is not None)


def put_on(family: Family, transformer: Any, wanted: Forward, full_rank: bool, here: str | None) -> Ways:
    """Give the transformer's blocks their forward.

    Args:
        family: Knows the blocks.
        transformer: Changed in place.
        wanted: The option.
        full_rank: All weights are trained and none is quantised or wrapped: then blocks are compiled.
        here: The ``obstacle`` of this device.

    Returns:
        The ways in force.
    """
    if wanted == "diffusers" or (wanted == "auto" and here):
        return Ways("diffusers")
    if wanted == "plain" or here:
        found = family.use_plain_forward(transformer)
        if found:
            return Ways("diffusers", said=f"Note: training steps run diffusers' own forward: {found}")
        return Ways("plain", said=f"Note: transformer_forward fast runs as plain: {here}" if wanted == "fast" else "")
    found = family.use_fast_forward(transformer, full_rank)
    if found:
        return Ways("diffusers", said=f"Note: training steps run diffusers' own forward: {found}")
    if not full_rank:
        return Ways("fast", said="Training steps run hand-written kernels")
    return Ways(
        "fast",
        True,
        "Training steps run hand-written kernels in compiled blocks. Compiling the blocks: the first step takes about half a "
        "minute the first time, some seconds in later runs",
    )


def can_replay(ways: Ways, trainee: Trainee, accumulation: int, captured: bool = True) -> bool:
    """Whether steps can be replayed as CUDA graphs.

    Args:
        ways: In force.
        trainee: Its optimizer guards itself; or it trains an adapter, whose gradients are few: then the graph leaves them for
            the host, and each shape of batch has its own. One that draws (dropout) draws anew in every step.
        accumulation: Micro-batches per step; only a step of one is one graph.
        captured: A graph can hold the base's products (``quantize.captured``).
    """
    adapter = trainee.adapter
    able = trainee.guards_itself or (adapter is not None and not (trainee.scaler or trainee.release))
    draws = adapter is not None and adapter.draws
    return ways.forward == "fast" and able and captured and accumulation == 1 and not draws
