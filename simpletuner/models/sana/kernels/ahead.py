"""Compiles the kernels of a Sana block before the first step asks for them, in processes of their own, beside other work.

In: the transformer's configuration. Out: nothing but compiled kernels in Triton's cache on disk, where the first step finds
them. Each operator is called once on tensors of the real widths and few tokens. Threads would not do: most of Triton's
compiler holds Python's lock. What goes wrong here goes wrong again in the first step, which is where it is told.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from simpletuner import own_process
from simpletuner.models.sana.kernels import cross_attention, depthwise, gated_norm, linear_attention, residual

SIDE, KEYS = 16, 64  # cells along a side of the picture, tokens of text
PROCESSES = 2  # one is at the depthwise backward most of the time, the other at all the rest
PATIENCE = 180.0  # seconds; then the first step compiles what is missing
WIDTHS = [
    "num_attention_heads",
    "attention_head_dim",
    "num_cross_attention_heads",
    "cross_attention_head_dim",
    "mlp_ratio",
]

Job = Callable[[], object]


def jobs(config: Mapping[str, Any], dtype: torch.dtype, device: torch.device, adapter: bool = False) -> list[Job]:
    """One call of every operator of a block, forward and backward, the longest to compile first.

    What gets no gradient in a run is another kernel. Where all weights are trained, the table and the biases get theirs; with
    an adapter no bias does, and the table only where a layer that reads the time is adapted.

    Args:
        config: Of the SanaTransformer2DModel.
        dtype: Of weights and activations.
        device: CUDA; elsewhere the plain twins run.
        adapter: The weights are frozen.
    """

    def some(*shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    tokens = SIDE * SIDE
    heads, width = config["num_attention_heads"], config["attention_head_dim"]
    channels = heads * width
    wide = 2 * int(config["mlp_ratio"] * channels)
    x, kernel, bias = some(1, tokens, wide), some(wide, 1, 3, 3), some(wide)
    qkv, result = some(1, tokens, 3, heads, width), some(1, tokens, heads, width)
    state = torch.ones(1, heads, width + 1, width, device=device)
    crossing = config["num_cross_attention_heads"], config["cross_attention_head_dim"]
    query, keys, scores = some(1, tokens, *crossing), some(1, KEYS, 2, *crossing), some(1, KEYS)
    sums = torch.ones(1, crossing[0], tokens, device=device)
    stream, table, shift = some(1, tokens, channels), some(1, 6, channels), some(channels)
    gate, rows = table[:, :1], table[:, 1:3]
    statistics = torch.ones(1, tokens, 2, device=device)
    grid = (SIDE, SIDE)
    trained: list[Job] = [
        lambda: residual.norm_backward(stream, stream, stream, statistics, rows, shift, True),
        lambda: residual.gated_add_backward(stream, stream, stream, gate, shift),
    ]
    frozen: list[Job] = [
        lambda: residual.norm_backward(stream, stream, stream, statistics, rows, None, False),
        lambda: gated_norm.gated_norm_backward(stream, stream, stream, statistics, None, gate, rows),
        lambda: residual.gated_add_backward(stream, stream, stream, gate, None),
        lambda: residual.gated_add_backward(stream, stream, None, gate, None),
        lambda: residual.gated_add_backward(stream, None, None, gate, None),
    ]
    return [
        lambda: depthwise.gated_depthwise_backward(some(1, tokens, wide // 2), x, kernel, bias, *grid),
        lambda: depthwise.gated_depthwise(x, kernel, bias, *grid),
        lambda: cross_attention.cross_attention_backward(query, query, keys, scores, query, sums),
        lambda: linear_attention.linear_attention_backward(result, qkv, state),
        lambda: cross_attention.cross_attention(query, keys, scores),
        lambda: residual.norm_backward(stream, stream, stream, statistics, rows, None, True),
        lambda: gated_norm.gated_norm_backward(stream, stream, stream, statistics, stream, gate, rows),
        lambda: gated_norm.gated_norm_forward(stream, stream, gate, rows, 1e-6),
        lambda: linear_attention.linear_attention(qkv),
        lambda: residual.gated_add_backward(stream, None, stream, gate, None),
        lambda: residual.norm_forward(stream, stream, rows, 1e-6),
        lambda: residual.norm_forward(stream, None, rows, 1e-6),
        lambda: residual.gated_add_forward(stream, stream, gate),
        *(frozen if adapter else trained),
    ]


def begin(
    config: Mapping[str, Any], dtype: torch.dtype, device: torch.device, adapter: bool = False
) -> Callable[[], None]:
    """Start compiling in processes, unless that was done here before; returns what waits for the end.

    Args:
        config: Of the SanaTransformer2DModel.
        dtype: Of weights and activations.
        device: CUDA.
        adapter: The weights are frozen.
    """
    widths = {name: config[name] for name in WIDTHS}
    done = _mark((widths, str(dtype), adapter), device)
    if done and done.exists():
        return lambda: None
    asked = {"config": widths, "dtype": str(dtype).removeprefix("torch."), "device": str(device), "adapter": adapter}
    running = [_start({**asked, "part": part}) for part in range(PROCESSES)]

    def finished() -> None:
        codes = [_code(process) for process in running]
        if done and not any(codes):
            with contextlib.suppress(OSError):
                done.parent.mkdir(parents=True, exist_ok=True)
                done.touch()

    return finished


def _mark(jobs_of: tuple[Any, ...], device: torch.device) -> Path | None:
    """A file that says that the kernels of these very jobs lie in Triton's cache; None where nothing is compiled."""
    if device.type != "cuda":
        return None
    import triton  # its distribution has other names elsewhere: pytorch-triton, pytorch-triton-rocm

    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    about = (*jobs_of, torch.cuda.get_device_capability(device), triton.__version__)
    digest = hashlib.sha256(sources + repr(about).encode()).hexdigest()[:16]
    folder = os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache"
    return Path(folder) / f"simpletuner-kernels-{digest}"


def _start(asked: dict[str, Any]) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    command = own_process.command(__name__, json.dumps(asked))
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
    atexit.register(_end, process)  # a run that fails before its first step leaves nobody on the GPU
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that nobody waits for any more."""
    if process.poll() is None:
        process.kill()
        process.wait()


def _code(process: subprocess.Popen[bytes]) -> int:
    """Wait for its exit code; a process that takes too long is ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    _end(process)
    return process.wait()


def main(asked: dict[str, Any]) -> None:
    """One process's part of the jobs."""
    device = torch.device(asked["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    todo = jobs(asked["config"], getattr(torch, asked["dtype"]), device, asked["adapter"])
    with torch.no_grad():
        for job in todo[:1] if asked["part"] == 0 else todo[1:]:
            job()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
