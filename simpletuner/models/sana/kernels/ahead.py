"""Compiles the kernels of a Sana block before the first step asks for them, side by side and beside other work.

In: the transformer's configuration. Out: nothing but compiled kernels in Triton's cache. Each operator is called once on
tensors of the real widths and few tokens; Triton compiles outside Python's lock, so threads share the work. What goes
wrong here goes wrong again in the first step, which is where it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from typing import Any

import torch

from simpletuner.models.sana.kernels import cross_attention, depthwise, linear_attention, residual

SIDE, KEYS = 16, 64  # cells along a side of the picture, tokens of text

Job = Callable[[], object]


def jobs(config: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> list[Job]:
    """One call of every operator of a block, forward and backward, the longest to compile first.

    Args:
        config: Of the SanaTransformer2DModel.
        dtype: Of weights and activations.
        device: CUDA; elsewhere the plain twins run.
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
    return [
        lambda: depthwise.gated_depthwise_backward(some(1, tokens, wide // 2), x, kernel, bias, *grid),
        lambda: depthwise.gated_depthwise(x, kernel, bias, *grid),
        lambda: cross_attention.cross_attention_backward(query, query, keys, scores, query, sums),
        lambda: linear_attention.linear_attention_backward(result, qkv, state),
        lambda: cross_attention.cross_attention(query, keys, scores),
        lambda: residual.norm_backward(stream, stream, stream, statistics, rows, shift, True),
        lambda: residual.norm_backward(stream, stream, stream, statistics, rows, None, True),
        lambda: linear_attention.linear_attention(qkv),
        lambda: residual.gated_add_backward(stream, stream, stream, gate, shift),
        lambda: residual.gated_add_backward(stream, None, stream, gate, None),
        lambda: residual.norm_forward(stream, stream, rows, 1e-6),
        lambda: residual.norm_forward(stream, None, rows, 1e-6),
        lambda: residual.gated_add_forward(stream, stream, gate),
    ]


def begin(config: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    """Start compiling in threads; returns what waits for the end.

    Args:
        config: Of the SanaTransformer2DModel.
        dtype: Of weights and activations.
        device: CUDA.
    """
    todo = jobs(config, dtype, device)
    pool = ThreadPoolExecutor(len(todo), thread_name_prefix="kernels")

    def run(job: Job) -> None:
        on_side = torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()
        with torch.no_grad(), on_side:
            job()

    futures = [pool.submit(run, job) for job in todo]
    pool.shutdown(wait=False)

    def finished() -> None:
        wait(futures)

    return finished
