"""What a bench that measures a GPU says where there is none."""

from __future__ import annotations

import sys


def need_gpu(instead: str) -> None:
    """Leave with status 2 and one sentence if no NVIDIA GPU can be used.

    Args:
        instead: What can be done without one.
    """
    import torch

    if not torch.cuda.is_available():
        print(f"This bench measures an NVIDIA GPU, and there is none here. What to do: {instead}.")
        sys.exit(2)
