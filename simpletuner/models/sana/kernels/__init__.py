"""Hand-written operations of a Sana block: what goes through memory once instead of several times.

In: tensors in token layout and plain numbers. Out: tensors of the same dtype, with gradients. Each operation is a
torch custom operator, so that torch.compile keeps it whole; its plain PyTorch twin (pure functions) serves CPU tensors,
machines without Triton and the tests, and the Triton kernels serve CUDA tensors. Nothing here knows of models.
"""

from __future__ import annotations

import functools
import importlib.util

import torch


@functools.cache
def triton_found() -> bool:
    """Whether Triton is installed; it is imported only once a CUDA tensor asks for it."""
    return importlib.util.find_spec("triton") is not None


def runs_in_triton(tensor: torch.Tensor) -> bool:
    """Whether an operation on this tensor takes the Triton kernels: CUDA, a dtype they know, Triton installed."""
    known = tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return tensor.is_cuda and known and triton_found()


def widest_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """The dtype that holds what each of them holds."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
