"""What every entry of the optimizer table must do; a new entry is tested at once."""

import json
from typing import Any, get_args

import pytest
import torch

from simpletuner.config.options import TrainingOptions
from simpletuner.training.optimizers import OPTIMIZERS, arguments_of, build, pack, unpack

NAMES = sorted(OPTIMIZERS)
Built = tuple[torch.nn.Linear, torch.optim.Optimizer]


def fresh(name: str, lr: float = 1e-2, dtype: torch.dtype = torch.float32, **overrides: Any) -> Built:
    """A small layer, always the same, and its optimizer."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 4).to(dtype)
    return model, build(name, model.parameters(), lr, overrides)


def steps(built: Built, first: int, last: int, lr: float | None = None) -> list[float]:
    """Steps first … last - 1 of a small regression as the loop does them; the losses."""
    model, optimizer = built
    losses = []
    for step in range(first, last):
        for group in optimizer.param_groups:
            group["lr"] = lr if lr is not None else group["lr"]
        inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        targets = inputs[:, :4] * 2 - 1
        loss = (model(inputs.to(model.weight.dtype)).float() - targets).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def arguments(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What is in force; optimi keeps the two betas apart."""
    (group,) = optimizer.param_groups
    return {"betas": (group.get("beta1"), group.get("beta2")), **group}


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_option_offers_exactly_the_table() -> None:
    assert set(get_args(TrainingOptions.model_fields["optimizer"].annotation)) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_and_keeps_everything_finite_and_of_its_dtype(name: str) -> None:
    model, optimizer = built = fresh(name)
    losses = steps(built, 0, 300)
    assert losses[-1] < 0.1 * losses[0]
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in model.parameters())
    assert isinstance(optimizer, torch.optim.Optimizer)


@pytest.mark.parametrize("name", NAMES)
def test_the_learning_rate_set_by_the_loop_is_the_one_in_force(name: str) -> None:
    still, moved, built = fresh(name), fresh(name), fresh(name)
    steps(still, 0, 3, lr=0.0)
    assert same(still[0], fresh(name)[0]), "a rate of 0 changes nothing"
    steps(built, 0, 1, lr=1e-3)
    steps(moved, 0, 1, lr=2e-3)
    start = fresh(name)[0].weight
    torch.testing.assert_close(moved[0].weight - start, 2 * (built[0].weight - start), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_its_defaults_and_overrides_are_in_force(name: str) -> None:
    given = arguments(fresh(name)[1])
    assert {key: given[key] for key in OPTIMIZERS[name].defaults} == dict(OPTIMIZERS[name].defaults)
    overrides: dict[str, Any] = {"betas": (0.5, 0.6), "eps": 0.1, "weight_decay": 0.3}
    assert not overrides.keys() - OPTIMIZERS[name].defaults.keys(), "the options offer these for every optimizer"
    changed = arguments(fresh(name, **overrides)[1])
    assert {key: changed[key] for key in overrides} == overrides
    assert arguments_of(name, overrides) >= {*overrides, "lr"}
    plain, other = fresh(name), fresh(name, **overrides)
    steps(plain, 0, 5)
    steps(other, 0, 5)
    assert not same(plain[0], other[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_without_gradient_is_left_alone(name: str) -> None:
    model, optimizer = fresh(name)
    bias = model.bias.detach().clone()
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert torch.equal(model.bias, bias)


@pytest.mark.parametrize("name", NAMES)
def test_zero_gradients_move_nothing_but_by_weight_decay(name: str) -> None:
    model, optimizer = fresh(name, weight_decay=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert same(model, fresh(name)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_saved_and_put_back_it_goes_on_to_the_same_bits(name: str, dtype: torch.dtype) -> None:
    if dtype is torch.bfloat16 and not OPTIMIZERS[name].low_precision_safe:
        pytest.skip("never trains bf16 weights")
    whole, first, second = fresh(name, dtype=dtype), fresh(name, dtype=dtype), fresh(name, dtype=dtype)
    steps(whole, 0, 8)
    steps(first, 0, 4)
    tensors, structure = pack(first[1])
    assert tensors and all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    second[0].load_state_dict(first[0].state_dict())
    notes = unpack(second[1], tensors, json.loads(json.dumps(structure)), arguments_of(name, {}))
    steps(second, 4, 8)
    assert same(whole[0], second[0]) and notes == []
    again, _ = pack(second[1])
    expected, _ = pack(whole[1])
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[k], expected[k]) and again[k].dtype == expected[k].dtype for k in again)


@pytest.mark.parametrize(("key", "value"), [("weight_decay", 0.25), ("eps", 0.1), ("betas", (0.5, 0.6))])
@pytest.mark.parametrize("name", NAMES)
def test_on_resume_the_configuration_wins_and_says_so(name: str, key: str, value: object) -> None:
    given: dict[str, Any] = {key: value}
    first, second = fresh(name), fresh(name, **given)
    steps(first, 0, 2)
    notes = unpack(second[1], *pack(first[1]), arguments_of(name, given))
    assert arguments(second[1])[key] == value
    # optimi keeps and tells its betas one by one
    assert len(notes) == (2 if (name, key) == ("optimi-adamw", "betas") else 1)
    assert all(key.rstrip("s") in note for note in notes)


@pytest.mark.parametrize("name", [name for name in NAMES if OPTIMIZERS[name].low_precision_safe])
def test_small_updates_survive_in_bf16(name: str) -> None:
    """1000 updates of 1e-6 on weights of 1, where bf16's own step is 4e-3 to 8e-3."""
    weight = torch.nn.Parameter(torch.ones(256, dtype=torch.bfloat16))
    optimizer = build(name, [weight], 2e-5, {"weight_decay": 0.0})
    for _ in range(1000):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert 1 - weight.float().mean().item() == pytest.approx(1000 * 2e-5, rel=0.25)
