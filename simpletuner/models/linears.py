"""1x1 convolutions as linear layers, since quantisers and their kernels know those only.

Half of Sana's weights are in the 1x1 convolutions of its feed-forward (GLUMBConv's conv_inverted and conv_point). The sums
are the same; state dicts keep diffusers' names and shapes, in both directions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

INSIDE = "pointwise"  # where the Linear stands inside; no layer of the published model has this name


def published(name: str) -> str:
    """A layer's name in the published model: ``….conv_inverted.pointwise`` → ``….conv_inverted``."""
    return name.removesuffix(f".{INSIDE}").removesuffix(f"_{INSIDE}")


def is_inside(name: str) -> bool:
    """Whether a name, with dots or (LyCORIS) underscores, is that of the Linear of a 1x1 convolution."""
    return published(name) != name


class Pointwise(nn.Module):
    """A 1x1 convolution as a Linear over channels; ``pointwise`` holds the weight [O, I], its key stays ``weight``."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        """Take over a convolution's own tensors; nothing is copied."""
        super().__init__()
        weight = convolution.weight
        self.pointwise = nn.Linear(weight.shape[1], weight.shape[0], convolution.bias is not None, device="meta")
        self.pointwise.weight = nn.Parameter(weight.data.flatten(1), weight.requires_grad)
        if convolution.bias is not None:
            self.pointwise.bias = nn.Parameter(convolution.bias.data, convolution.bias.requires_grad)
        self.register_state_dict_post_hook(_as_convolution)
        self.register_load_state_dict_pre_hook(_as_linear)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, I, H, W] → [B, O, H, W]."""
        result: torch.Tensor = self.pointwise(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return result


def _as_convolution(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    """Saving: ``pointwise.weight`` [O, I] → ``weight`` [O, I, 1, 1]. Quantised tensors are not ours to name."""
    for name in ("weight", "bias"):
        tensor = state.get(f"{prefix}pointwise.{name}")
        if tensor is not None and type(tensor) in (torch.Tensor, nn.Parameter) and tensor.is_floating_point():
            del state[f"{prefix}pointwise.{name}"]
            state[prefix + name] = tensor[..., None, None] if name == "weight" else tensor


def _as_linear(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    """Loading: the other way."""
    for name in ("weight", "bias"):
        tensor = state.pop(prefix + name, None)
        if tensor is not None:
            state[f"{prefix}pointwise.{name}"] = tensor.flatten(1) if name == "weight" else tensor


def is_pointwise(module: nn.Module) -> bool:
    """Whether a module is a plain 1x1 convolution over all channels."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == module.stride == module.dilation == (1, 1)
        and module.padding == (0, 0)
        and module.groups == 1
    )


def pointwise_as_linear(model: nn.Module) -> int:
    """Replace every 1x1 convolution in place; returns how many."""
    found = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    found = [entry for entry in found if is_pointwise(entry[2])]
    for parent, name, convolution in found:
        assert isinstance(convolution, nn.Conv2d)
        setattr(parent, name, Pointwise(convolution))
    return len(found)
