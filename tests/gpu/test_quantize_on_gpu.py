"""Quantised layers on a GPU: both ways there, values, gradients, and rows too few for the integer kernels."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from torch import nn

from simpletuner.models import quantize
from simpletuner.models.quantize import EXTRAS, PLANS, Settings, relative_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU, CPU = torch.device("cuda"), torch.device("cpu")
BOUNDS = {"nf4-bnb": 0.12, "int8-torchao": 0.015, "int8dq-torchao": 0.02, "fp8wo-torchao": 0.04, "fp8-torchao": 0.06}


@pytest.mark.parametrize("rows", [3, 300])
@pytest.mark.parametrize("via", ["cpu", "accelerator"])
@pytest.mark.parametrize("name", PLANS)
def test_values_and_gradients(name: str, via: str, rows: int) -> None:
    # A missing package is never a skip: the extra `dev` has them, and "not on this card" would hide that nothing ran.
    assert importlib.util.find_spec(PLANS[name].package), f"pip install './[{EXTRAS[PLANS[name].package]}]'"
    if obstacle := quantize.obstacle(name, CPU if via == "cpu" else GPU):
        pytest.skip(f"{name} on the {via}: {obstacle[0]}")
    torch.manual_seed(0)
    layer = nn.Linear(256, 96, dtype=torch.bfloat16)
    holder = nn.Sequential(copy.deepcopy(layer))
    settings = Settings(name, CPU if via == "cpu" else GPU, torch.bfloat16)
    quantize.quantise(holder, holder, settings)
    holder.to(GPU)
    layer.to(GPU).requires_grad_(False)
    x = torch.randn(rows, 256, dtype=torch.bfloat16, device=GPU, requires_grad=True)
    up = torch.randn(rows, 96, dtype=torch.bfloat16, device=GPU)
    made = holder(x)
    assert 1e-4 < relative_error(layer(x), made) < BOUNDS[name]
    made.backward(up)
    assert x.grad is not None
    assert relative_error(up @ quantize.dense(holder[0]).to(up.dtype), x.grad) < 0.02
    assert relative_error(layer.weight, quantize.dense(holder[0])) < BOUNDS[name]
