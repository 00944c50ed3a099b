"""Which dtypes are in force, decided once from mixed_precision and the optimizer, and printed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, slots=True)
class Precision:
    """The dtypes of a run.

    Attributes:
        weights: Dtype of the trained parameters.
        autocast: Dtype of the products under autocast, or None for no autocast.
        cache: Dtype of cached latents and text embeds.
        scale_gradients: Whether fp16 gradients need a scaler.
        base: Dtype of the frozen weights beside an adapter, or None if all weights are trained.
    """

    weights: torch.dtype
    autocast: torch.dtype | None
    cache: torch.dtype
    scale_gradients: bool = False
    base: torch.dtype | None = None

    def context(self, device: torch.device) -> AbstractContextManager[object]:
        """The autocast context of one forward pass."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.autocast)

    def describe(self) -> str:
        """One sentence for the log."""
        short = str(self.weights).removeprefix("torch.")
        if self.base is not None:
            short += f" for the adapter over a frozen {str(self.base).removeprefix('torch.')} model"
        if self.autocast is None:
            return f"weights {short}, no autocast"
        return f"weights {short} under {str(self.autocast).removeprefix('torch.')} autocast"


def choose_for_adapter(mixed_precision: Literal["no", "bf16", "fp16"]) -> Precision:
    """The precision of an adapter's run, with any optimizer.

    Args:
        mixed_precision: The user's option.

    Returns:
        float32 adapter weights, which are few: no update is lost, whatever the optimizer. The frozen model is in the
        dtype of the products, but for fp16: weights made in bf16 lose their smallest values there, so it stays float32.
    """
    if mixed_precision == "no":
        return Precision(torch.float32, None, torch.float32, base=torch.float32)
    if mixed_precision == "fp16":
        return Precision(torch.float32, torch.float16, torch.bfloat16, scale_gradients=True, base=torch.float32)
    return Precision(torch.float32, torch.bfloat16, torch.bfloat16, base=torch.bfloat16)


def choose(mixed_precision: Literal["no", "bf16", "fp16"], low_precision_safe: bool) -> Precision:
    """The precision for an option and an optimizer.

    Args:
        mixed_precision: The user's option.
        low_precision_safe: The optimizer keeps small updates in bf16 (stochastic rounding or Kahan sums).

    Returns:
        bf16 with a safe optimizer trains bf16 weights; with any other, fp32 weights under bf16 autocast. fp16 is
        always fp32 weights, fp16 autocast and a gradient scaler.
    """
    if mixed_precision == "no":
        return Precision(torch.float32, None, torch.float32)
    if mixed_precision == "fp16":
        return Precision(torch.float32, torch.float16, torch.bfloat16, scale_gradients=True)
    if low_precision_safe:
        return Precision(torch.bfloat16, None, torch.bfloat16)
    return Precision(torch.float32, torch.bfloat16, torch.bfloat16)
