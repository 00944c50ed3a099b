"""Which weights stay as they are."""

from __future__ import annotations

import torch


def bias_and_norms_only(model: torch.nn.Module) -> tuple[int, int]:
    """Freeze all parameters but biases and those of norm layers.

    Args:
        model: Changed in place: ``requires_grad`` of every parameter.

    Returns:
        Elements that are trained, and all elements.

    Source: Ben Zaken et al. 2022, "BitFit", which trains biases; a norm's scale acts on channels one by one as they do.
    """
    model.requires_grad_(False)
    for module in model.modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            parameter.requires_grad = is_norm or name == "bias"
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in model.parameters())
