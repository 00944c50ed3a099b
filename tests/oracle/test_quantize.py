"""Quantised layers against the layers they came from: values, gradients, what is left alone, and names on disk."""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SanaTransformer2DModel
from torch import nn

from simpletuner.models import quantize
from simpletuner.models.linears import pointwise_as_linear
from simpletuner.models.quantize import PLANS, Settings
from simpletuner.wording import install

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from random_sana import transformer_config

CPU = torch.device("cpu")
HERE = [name for name, plan in PLANS.items() if plan.capability is None]
# The largest relative error of one layer's output that is right for so many bits, on normal weights and inputs.
BOUNDS = {"nf4-bnb": 0.12, "int8-torchao": 0.01, "int8dq-torchao": 0.02, "fp8wo-torchao": 0.04}


@pytest.fixture(scope="module")
def plain() -> SanaTransformer2DModel:
    torch.manual_seed(0)
    return SanaTransformer2DModel(**transformer_config("tiny")).eval().requires_grad_(False)


def velocity(model: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    latents, text = torch.randn(2, 32, 4, 6, generator=draw), torch.randn(2, 5, 2304, generator=draw)
    made = model(latents.to(dtype), text.to(dtype), torch.tensor([300.0, 700.0]), return_dict=False)[0]
    return torch.as_tensor(made)


def test_pointwise_convolutions_as_linears_are_the_same(plain: SanaTransformer2DModel, tmp_path: Path) -> None:
    model = copy.deepcopy(plain)
    assert pointwise_as_linear(model.transformer_blocks) == 2 * len(plain.transformer_blocks)
    assert (velocity(model) - velocity(plain)).norm() <= 1e-6 * velocity(plain).norm()
    model.save_pretrained(tmp_path)
    again = SanaTransformer2DModel.from_pretrained(tmp_path).state_dict()
    assert again.keys() == plain.state_dict().keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in plain.state_dict().items())
    model.load_state_dict({key: 2 * tensor for key, tensor in plain.state_dict().items()})
    inverted = plain.transformer_blocks[0].ff.conv_inverted.weight
    assert torch.equal(model.transformer_blocks[0].ff.conv_inverted.pointwise.weight, 2 * inverted.flatten(1))


def test_of_the_real_model_nearly_all_is_quantised() -> None:
    with torch.device("meta"):
        model = SanaTransformer2DModel(**transformer_config("1.6b"))
    total = sum(p.numel() for p in model.parameters())
    layers = quantize.matrices(model.transformer_blocks)
    assert 0.965 < sum(layer.weight.numel() for _, _, layer in layers) / total < 0.98
    assert {name for _, name, _ in layers} == {"to_q", "to_k", "to_v", "0", "pointwise"}


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_layer(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(256, 96, dtype=dtype), torch.randn(7, 256, dtype=dtype)
    holder = nn.Sequential(copy.deepcopy(layer))
    assert quantize.quantise(holder, holder, Settings(name, CPU, dtype)) > 0.98
    made, exact = holder(x), layer(x)
    assert made.dtype == dtype and not holder[0].weight.requires_grad
    assert 1e-4 < quantize.relative_error(exact, made) < BOUNDS[name]
    assert type(holder[0]).__name__ != "Linear"  # LyCORIS tells quantised layers by that


@pytest.mark.parametrize("name", HERE)
def test_gradients_pass_as_through_the_rounded_weight(name: str) -> None:
    torch.manual_seed(0)
    holder = nn.Sequential(nn.Linear(128, 64))
    quantize.quantise(holder, holder, Settings(name, CPU, torch.float32))
    weight = holder(torch.eye(128)).T - holder(torch.zeros(128))[:, None]
    x, up = torch.randn(5, 128), torch.randn(5, 64)
    holder.eval()(x)  # bitsandbytes packs weights for good in such a forward on some CPUs
    x.requires_grad_(True)
    holder.train()(x).backward(up)
    assert x.grad is not None
    assert (x.grad - up @ weight).norm() < 1e-2 * x.grad.norm()  # int8dq rounds the unit vectors too


@pytest.mark.parametrize("name", ["nf4-bnb", "int8dq-torchao"])
def test_lora_over_a_quantised_model_trains_with_and_without_checkpointing(
    plain: SanaTransformer2DModel, name: str
) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = copy.deepcopy(plain)
    share = quantize.quantise(model, model.transformer_blocks, Settings(name, CPU, torch.float32))
    assert 0 < share < 1
    outside = {k: v for k, v in model.state_dict().items() if not k.startswith("transformer_blocks")}
    assert outside and all(torch.equal(tensor, plain.state_dict()[key]) for key, tensor in outside.items())
    depthwise = model.transformer_blocks[0].ff.conv_depth.weight
    assert torch.equal(depthwise, plain.transformer_blocks[0].ff.conv_depth.weight)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # merging is not possible, says PEFT
        inject_adapter_in_model(LoraConfig(r=4, target_modules=["to_q", "conv_inverted.pointwise"]), model)
    trained = {n: p for n, p in model.named_parameters() if "lora_" in n}
    for parameter in trained.values():
        nn.init.normal_(parameter.data, std=0.05)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        velocity(model.train()).square().mean().backward()
        return {n: torch.as_tensor(p.grad).clone() for n, p in trained.items()}

    without = gradients()
    model.enable_gradient_checkpointing()
    assert len(without) == 2 * 3 * len(plain.transformer_blocks)
    for parameter, gradient in gradients().items():
        assert gradient.norm() > 0
        torch.testing.assert_close(gradient, without[parameter])


def test_what_this_machine_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(quantize.obstacle(name, CPU) is None for name in HERE)
    reason, remedy = quantize.obstacle("fp8-torchao", CPU) or ("", "")
    assert "compute capability 8.9" in reason and "int8-torchao" in remedy
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    reason, remedy = quantize.obstacle("nf4-bnb", CPU) or ("", "")
    assert "bitsandbytes" in reason and remedy == install("bnb")
