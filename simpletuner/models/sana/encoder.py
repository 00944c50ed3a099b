"""DC-AE's encoder, the same arithmetic in kernels that suit it. Weights, names and the decoder are untouched.

In: an AutoencoderDC. Out: the same one, quicker at encoding. Profile of the plain one (f32c32, 1024 px, float32, one
H100, 73 ms a picture): 19 ms in nine grouped 1x1 convolutions, for which cuDNN has only a direct kernel, and about 15 ms
in RMS norms written as seven passes over strided memory.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn


def grouped_pointwise(weight: torch.Tensor, groups: int, features: torch.Tensor) -> torch.Tensor:
    """A grouped 1x1 convolution without bias, as one batched matrix product.

    Args:
        weight: [O, I / groups, 1, 1], as ``nn.Conv2d`` keeps it.
        groups: Divides O and I.
        features: [B, I, H, W].

    Returns:
        [B, O, H, W], the same sums as ``torch.nn.functional.conv2d`` in another order.
    """
    batch, _, height, width = features.shape
    inside = features.reshape(batch, groups, -1, height * width)
    product = torch.matmul(weight.reshape(groups, weight.shape[0] // groups, weight.shape[1]), inside)
    return product.reshape(batch, weight.shape[0], height, width)


def rms_norm(norm: Any, features: torch.Tensor) -> torch.Tensor:
    """Diffusers' RMSNorm over the last dimension, through torch's own kernel.

    Args:
        norm: With ``dim``, ``eps`` and ``weight`` and ``bias`` of shape [C], or None.
        features: [..., C].
    """
    normed = torch.nn.functional.rms_norm(features, tuple(norm.dim), norm.weight, norm.eps)
    return normed if norm.bias is None else normed + norm.bias


def quicken(vae: Any) -> Any:
    """Replace the slow parts of ``vae.encoder`` in place, and return the VAE."""
    from diffusers.models.normalization import RMSNorm

    for module in vae.encoder.modules():
        # On the object, not by another class: saving, moving and counting weights stay diffusers' own.
        if isinstance(module, RMSNorm):
            vars(module)["forward"] = partial(rms_norm, module)
        elif isinstance(module, nn.Conv2d) and _is_grouped_pointwise(module):
            vars(module)["forward"] = partial(_pointwise_forward, module)
    return vae


def _is_grouped_pointwise(module: nn.Conv2d) -> bool:
    return module.kernel_size == module.stride == (1, 1) and module.groups > 1 and module.bias is None


def _pointwise_forward(convolution: nn.Conv2d, features: torch.Tensor) -> torch.Tensor:
    return grouped_pointwise(convolution.weight, convolution.groups, features)
