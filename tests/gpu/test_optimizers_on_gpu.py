"""What only a GPU can show of optimizers and EMA."""

import json

import pytest
import torch

from simpletuner.training.ema import Ema
from simpletuner.training.optimizers import arguments_of, build, pack, unpack

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_is_the_same_bits_on_the_cpu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(n, device="cuda").to(dtype)) for n in (10, 100_003)]
    there, here = Ema(weights, 0.99), Ema(weights, 0.99, device=torch.device("cpu"))
    for step in range(1, 50):
        for weight in weights:
            weight.data.add_(torch.randn_like(weight) * 0.01)
        there.update(step)
        here.update(step)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(there.shadow, here.shadow, strict=True))


@pytest.mark.parametrize("name", ["bnb-lion8bit-paged", "bnb-adamw-paged", "adamw_bf16", "ao-adamw8bit"])
def test_it_resumes_to_the_same_bits_and_stays_paged(name: str) -> None:
    if name.startswith("bnb"):
        pytest.importorskip("bitsandbytes")
    if name.startswith("ao"):
        pytest.importorskip("torchao")

    def make() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(512, 512, device="cuda", dtype=torch.bfloat16))
        return weight, build(name, [weight], 1e-3, {}, seed=1)

    def steps(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            generator = torch.Generator("cuda").manual_seed(step)
            weight.grad = torch.randn(weight.shape, generator=generator, device="cuda", dtype=weight.dtype)
            optimizer.step()

    (whole, all_along), (half, first), (resumed, second) = make(), make(), make()
    steps(whole, all_along, 0, 6)
    steps(half, first, 0, 3)
    resumed.data.copy_(half.data)
    tensors, structure = pack(first)
    unpack(second, tensors, json.loads(json.dumps(structure)), arguments_of(name, {}))
    if name.endswith("-paged"):
        assert any(getattr(value, "is_paged", False) for value in second.state[resumed].values())
    steps(resumed, second, 3, 6)
    assert torch.equal(whole, resumed)
