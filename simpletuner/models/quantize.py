"""Quantised layers: the weight matrices of a frozen model in 4 or 8 bits, everything sensitive as it was.

In: a model, the part of it that holds its blocks, and a plan by the original's name. Out: the same model, changed in
place, and figures to print. Layers are swapped one by one, on the CPU or on the GPU: no library's loader is involved, and
the whole model never has to fit on the card in full precision. Weights are frozen; gradients pass through to adapters.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from simpletuner.models import imports
from simpletuner.models.linears import pointwise_as_linear
from simpletuner.wording import install


class TorchaoLinear(nn.Linear):
    """A Linear whose weight torchao has quantised; frozen, and a way through for gradients to what comes before it.

    Also a name of its own: LyCORIS rebuilds W + ΔW for a plain Linear, which quantised weights cannot do, and adds the
    adapter's output beside any other kind of Linear.
    """

    compute_dtype: torch.dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., I] → [..., O] in the dtype of ``x``."""
        result: torch.Tensor = _StraightThrough.apply(x.to(self.compute_dtype), self.weight, self.bias)
        return result.to(x.dtype)


class _StraightThrough(torch.autograd.Function):
    """xWᵀ + b by torchao's kernel; backward as if x had not been rounded.

    torchao's kernels for rounded activations have no gradient at all, which autograd does not say: layers before them
    would just not be trained. And nothing of full precision is kept for backward.
    Source: Bengio et al. 2013 (arXiv 1308.3432), straight-through estimator.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.weight = weight  # of a class of torchao's own, so it is not given to save_for_backward
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ ctx.weight.dequantize().to(gradient.dtype), None, None


def _nf4(layer: nn.Linear, device: torch.device, compute: torch.dtype) -> nn.Module:
    """NF4 with the scales quantised as well (double quantisation), computing in ``compute``.

    Source: Dettmers et al. 2023, QLoRA (arXiv 2305.14314), section 3; bitsandbytes' Linear4bit.
    """
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    layer = layer.to(device, compute)
    made = Linear4bit(
        *(layer.in_features, layer.out_features, layer.bias is not None),
        compute_dtype=compute,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    made.weight = Params4bit(
        layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=made
    )
    made.bias = layer.bias
    # On a CPU with AVX-512 the first forward in eval mode would pack the weight for inference, for good: no gradient
    # passes through it from then on, so the first validation would end training.
    made.support_avx512bf16_for_cpu = False
    return made.to(device)  # moving it quantises it, also to where it is


def _torchao(config: str, layer: nn.Linear, device: torch.device, compute: torch.dtype) -> nn.Module:
    """One of torchao's configurations, by its class."""
    ao = imports.quietly("torchao.quantization")
    layer.to(device, compute)
    ao.quantize_(layer, getattr(ao, config)(), filter_fn=lambda module, _: module is layer)
    layer.requires_grad_(False)
    layer.__class__ = TorchaoLinear
    vars(layer)["compute_dtype"] = compute
    return layer


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to quantise.

    Attributes:
        package: What must be installed.
        bits: Bits a weight takes, scales not counted.
        capability: CUDA compute capability needed, as (major, minor), or None if any device does.
        swap: (layer, device, compute dtype) → its quantised form on that device.
        captured: A CUDA graph can hold its products. Those of int8 on both sides broke a capture (torchao 0.18); fp8's were not tried.
    """

    package: str
    bits: int
    capability: tuple[int, int] | None
    swap: Callable[[nn.Linear, torch.device, torch.dtype], nn.Module]
    captured: bool = True


PLANS: dict[str, Plan] = {
    "nf4-bnb": Plan("bitsandbytes", 4, None, _nf4),
    "int8-torchao": Plan("torchao", 8, None, partial(_torchao, "Int8WeightOnlyConfig")),
    "int8dq-torchao": Plan("torchao", 8, None, partial(_torchao, "Int8DynamicActivationInt8WeightConfig"), False),
    "fp8wo-torchao": Plan("torchao", 8, None, partial(_torchao, "Float8WeightOnlyConfig")),
    "fp8-torchao": Plan("torchao", 8, (8, 9), partial(_torchao, "Float8DynamicActivationFloat8WeightConfig"), False),
}
EXTRAS = {"bitsandbytes": "bnb", "torchao": "torchao"}


def obstacle(name: str, device: torch.device) -> tuple[str, str] | None:
    """Why a plan cannot be carried out here, and what to do; None if it can.

    Args:
        name: A key of ``PLANS``.
        device: Where the model will work.
    """
    plan = PLANS[name]
    if importlib.util.find_spec(plan.package) is None:
        return f"it needs {plan.package}, which is not installed", install(EXTRAS[plan.package])
    if plan.capability is not None:
        needed = ".".join(map(str, plan.capability))
        if device.type != "cuda":
            return f"it needs an NVIDIA card of compute capability {needed}", "use int8-torchao or nf4-bnb"
        found = torch.cuda.get_device_capability(device)
        if found < plan.capability:
            reason = f"it needs compute capability {needed}, and this card has {found[0]}.{found[1]}"
            return reason, "use fp8wo-torchao, int8-torchao or nf4-bnb"
    return None


@dataclass(frozen=True, slots=True)
class Settings:
    """How one model is quantised.

    Attributes:
        name: A key of ``PLANS``.
        device: Where each layer is quantised, and stays.
        compute: Dtype of the products.
    """

    name: str
    device: torch.device
    compute: torch.dtype


def quantise(model: nn.Module, blocks: nn.Module, settings: Settings) -> float:
    """Freeze a model and quantise every matrix of its blocks, 1x1 convolutions included.

    What lies outside the blocks stays as it is (patch and text projections, time embedding, output), and so do norms,
    tables, biases and depthwise convolutions inside them: few weights that matter much.

    Args:
        model: On the CPU; changed in place.
        blocks: The part of it to look through. The rest of the model is not moved.
        settings: How.

    Returns:
        Of all weights of the model, the share that is quantised.
    """
    model.requires_grad_(False)
    total = sum(p.numel() for p in model.parameters())
    chosen = matrices(blocks)
    count = sum(layer.weight.numel() for _, _, layer in chosen)
    plan = PLANS[settings.name]
    imports.quietly(plan.package)
    for parent, name, layer in chosen:
        setattr(parent, name, plan.swap(layer, settings.device, settings.compute))
    return count / total


def matrices(blocks: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Every Linear of the blocks as (parent, name, layer), after 1x1 convolutions have become such."""
    pointwise_as_linear(blocks)
    children = [(parent, name, child) for parent in blocks.modules() for name, child in parent.named_children()]
    return [(parent, name, child) for parent, name, child in children if isinstance(child, nn.Linear)]


def dense(layer: Any) -> torch.Tensor:
    """A layer's weight as the products see it, quantised or not: [O, I], or [O, I, k, k] of a convolution."""
    if isinstance(layer, TorchaoLinear):
        return torch.as_tensor(layer.weight.dequantize())
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        weight: torch.Tensor = layer.weight
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return torch.as_tensor(dequantize_4bit(layer.weight.data, state))


def weights(model: nn.Module) -> int:
    """How many weights a model has; two of 4 bits share a byte."""
    return sum(p.numel() * (2 if hasattr(p, "quant_state") else 1) for p in model.parameters())


def relative_error(exact: torch.Tensor, other: torch.Tensor) -> float:
    """‖other − exact‖ / ‖exact‖."""
    exact, other = exact.detach().float(), other.detach().float()
    return float((other - exact).norm() / exact.norm())


def captured(name: str) -> bool:
    """Whether a CUDA graph can hold a base of this precision; ``no_change`` is none of ``PLANS``."""
    return name not in PLANS or PLANS[name].captured
