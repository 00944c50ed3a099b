"""What every entry of the optimizer table must do; a new entry is tested at once."""

import inspect
import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch

from simpletuner.config.optimizer_names import GLOBAL_ESTIMATE, PACKAGES, SCHEDULE_FREE, OptimizerName
from simpletuner.config.optimizer_names import arguments as offered
from simpletuner.training import fast_path
from simpletuner.training.gradient_release import by_block
from simpletuner.training.guarded_adam import GuardedAdam
from simpletuner.training.optimizers import (
    OPTIMIZERS,
    arguments_of,
    build,
    describe,
    evaluation_weights,
    low_precision_safe,
    optimizer_class,
    pack,
    set_learning_rate,
    settle,
    unpack,
)

NAMES = sorted(OPTIMIZERS)  # the extra `dev` has every package: one that is missing fails here
# (name, each parameter stepped alone, dtype of the weights): all that a run may ask for.
WAYS = [
    (name, one_by_one, dtype)
    for name in NAMES
    for one_by_one in (False, True)[: 1 + OPTIMIZERS[name].per_parameter]
    for dtype in (torch.float32, torch.bfloat16)[: 1 + OPTIMIZERS[name].low_precision_safe]
]
Built = tuple[torch.nn.Module, torch.optim.Optimizer]

# Where 1e-2 is not a sensible rate for the small regression below.
RATES = {"prodigy": 1.0, "torch-adadelta": 1.0, "torch-sgd": 0.1, "optimi-sgd": 0.1, "torch-asgd": 0.1, "came": 1e-3}
RATES["radam_schedulefree"] = 0.1
RATES |= {"torch-adagrad": 0.1, "bnb-adagrad": 0.1, "bnb-adagrad8bit": 0.1, "torch-adafactor": 0.1}
# Steps that change no weight yet, and rates whose first effect is more than rounding where 1e-4 has none.
SILENT = {"soap": 1, "radam_schedulefree": 5}
TELLING = {"prodigy": 0.1, "torch-adadelta": 0.1}
# What happens every so many steps happens within the few steps here.
SOONER: dict[str, dict[str, Any]] = {"soap": {"precondition_frequency": 2}}
# The class has these, and the program or the name decides them.
OURS = {"self", "params", "lr", "seed", "warmup_steps", "gradient_release", "kwargs"}
OURS |= {"optim_bits", "is_paged", "args", "capturable", "differentiable", "fsdp_in_use"}


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    """torchao compiles its first step, which takes longer than all tests here."""
    with torch.compiler.set_stance("force_eager"):
        yield


def fresh(
    name: str, lr: float = 1e-2, dtype: torch.dtype = torch.float32, one_by_one: bool = False, **overrides: Any
) -> Built:
    """A layer of at least 4096 weights (fewer are never kept in 8 bits) and a 1x1 convolution, always the same."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Conv2d(64, 16, 1)).to(dtype)
    parts = by_block(model.named_parameters()) if one_by_one else None
    return model, build(name, model.parameters(), lr, overrides, seed=3, parts=parts)


def steps(built: Built, first: int, last: int, lr: float = 1e-2) -> list[float]:
    """Steps first … last - 1 of a small regression as the loop does them; the losses."""
    model, optimizer = built
    losses = []
    for step in range(first, last):
        set_learning_rate(optimizer, lr)
        inputs = torch.randn(32, 64, generator=torch.Generator().manual_seed(step))
        outputs = model[1](model[0](inputs.to(next(model.parameters()).dtype))[:, :, None, None]).flatten(1)  # type: ignore[index]
        loss = (outputs.float() - (inputs[:, :16] * 2 - 1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def in_force(optimizer: Any) -> dict[str, Any]:
    """Arguments of all groups and of the object itself; optimi keeps the betas apart."""
    found: dict[str, Any] = {}
    for group in optimizer.param_groups:
        betas = tuple(group[f"beta{n}"] for n in (1, 2, 3) if "beta1" in group and f"beta{n}" in group)
        found = {**group, **({"betas": betas} if betas else {}), **found}
    return {**vars(optimizer), **found}


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def strides(optimizer: torch.optim.Optimizer) -> list[tuple[int, ...]]:
    """How every tensor of the state lies in memory."""

    def walk(value: Any) -> Iterator[tuple[int, ...]]:
        if isinstance(value, torch.Tensor):
            yield value.stride()
        elif isinstance(value, dict | list | tuple):
            for item in value.values() if isinstance(value, dict) else value:
                yield from walk(item)

    return list(walk(torch.optim.Optimizer.state_dict(optimizer)["state"]))


def test_the_option_offers_exactly_the_table() -> None:
    assert set(get_args(OptimizerName)) == set(OPTIMIZERS)
    assert {name for name, entry in OPTIMIZERS.items() if entry.schedule_free} == SCHEDULE_FREE
    assert {name for name, entry in OPTIMIZERS.items() if not entry.per_parameter} == GLOBAL_ESTIMATE
    for name in OPTIMIZERS:
        if package := PACKAGES.get(name.partition("-")[0]):
            roots = {cls.__module__.partition(".")[0] for cls in optimizer_class(name).__mro__}
            assert package[0] in roots, "the class itself, or the one that it adds to"


def test_steps_become_graphs_with_all_that_can_guard_themselves() -> None:
    assert {name for name in NAMES if issubclass(optimizer_class(name), GuardedAdam)} == set(fast_path.GUARDED)


@pytest.mark.parametrize("name", NAMES)
def test_the_arguments_offered_are_those_of_the_class(name: str) -> None:
    assert set(offered(name)) == set(inspect.signature(optimizer_class(name)).parameters) - OURS


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_and_keeps_everything_finite_and_of_its_dtype(name: str) -> None:
    rate = RATES.get(name, 1e-2 if "lion" not in name else 1e-3)
    model, optimizer = built = fresh(name, rate)
    losses = steps(built, 0, 120, rate)
    assert losses[-1] < 0.25 * losses[0]
    settle(optimizer)
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in model.parameters())
    assert isinstance(optimizer, torch.optim.Optimizer)


@pytest.mark.parametrize("name", NAMES)
def test_the_learning_rate_set_by_the_loop_is_the_one_in_force(name: str) -> None:
    more: dict[str, Any] = {"d0": 1e-3} if name == "prodigy" else {}  # its first estimate, a factor of the rate
    still, moved, built = (fresh(name, **more) for _ in range(3))
    steps(still, 0, 3, lr=0.0)
    assert same(still[0], fresh(name)[0]), "a rate of 0 changes nothing"
    silent, rate = SILENT.get(name, 0), TELLING.get(name, 1e-4)
    for optimizer, factor in ((built, 1), (moved, 2)):
        steps(optimizer, 0, silent, lr=0.0)
        steps(optimizer, silent, silent + 1, lr=factor * rate)
    for start, far, near in zip(*(m.parameters() for m in (fresh(name)[0], moved[0], built[0])), strict=True):
        assert (near - start).abs().max() > 1e-6, "it has moved"
        torch.testing.assert_close(far - start, 2 * (near - start), rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_its_defaults_and_overrides_are_in_force(name: str) -> None:
    defaults = {k: v for k, v in OPTIMIZERS[name].defaults.items() if v is not None}
    given = in_force(fresh(name)[1])
    assert {key: given[key] for key in defaults} == defaults
    possible: dict[str, Any] = {"betas": (0.5, 0.6), "eps": 0.1, "weight_decay": 0.3}
    overrides = {key: value for key, value in possible.items() if key in offered(name) and name != "torch-adafactor"}
    overrides["weight_decay"] = 0.3
    model, optimizer = fresh(name, **overrides)
    changed = in_force(optimizer)
    changed["betas"] = tuple(changed.get("betas", ()))[:2]  # a third one stays as it was
    assert {key: changed[key] for key in overrides} == overrides
    assert arguments_of(name, overrides) >= {*overrides, *offered(name), "lr"}
    assert "0.3" in describe(name, optimizer) and name in describe(name, optimizer)
    plain = fresh(name)
    steps(plain, 0, 5)
    steps((model, optimizer), 0, 5)
    assert not same(plain[0], model)


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_without_gradient_is_left_alone(name: str) -> None:
    model, optimizer = fresh(name)
    first, *others = model.parameters()
    before = [p.detach().clone() for p in others]
    first.grad = torch.ones_like(first)
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(others, before, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_zero_gradients_move_nothing_but_by_weight_decay(name: str) -> None:
    none: dict[str, Any] = {"lambd": 0.0} if name == "torch-asgd" else {}  # a decay of its own
    model, optimizer = fresh(name, weight_decay=0.0, **none)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert same(model, fresh(name)[0])


@pytest.mark.parametrize(("name", "one_by_one", "dtype"), WAYS)
def test_saved_and_put_back_it_goes_on_to_the_same_bits(name: str, one_by_one: bool, dtype: torch.dtype) -> None:
    more = SOONER.get(name, {})
    whole, first, second = (fresh(name, dtype=dtype, one_by_one=one_by_one, **more) for _ in range(3))
    steps(whole, 0, 6)
    steps(first, 0, 3)
    tensors, structure = pack(first[1])
    assert all(type(tensor) is torch.Tensor for tensor in tensors.values()), "safetensors can hold them"
    second[0].load_state_dict(first[0].state_dict())
    notes = unpack(second[1], tensors, json.loads(json.dumps(structure)), arguments_of(name, more))
    assert strides(second[1]) == strides(first[1]), "sums over another order in memory differ in their last bits"
    torch.manual_seed(99)  # what is drawn may not depend on what was drawn before
    steps(second, 3, 6)
    assert same(whole[0], second[0]) and notes == []
    again, tree = pack(second[1])
    expected, expected_tree = pack(whole[1])
    assert again.keys() == expected.keys() and tree == expected_tree
    assert all(torch.equal(again[k], expected[k]) and again[k].dtype == expected[k].dtype for k in again)


CHANGED: dict[str, Any] = {"weight_decay": 0.25, "eps": 0.1, "betas": (0.5, 0.6)}


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        (name, key, value)
        for name in NAMES
        if name not in ("torch-adafactor", "muon")
        for key, value in CHANGED.items()
        if key in offered(name)
    ],
)
def test_on_resume_the_configuration_wins_and_says_so(name: str, key: str, value: Any) -> None:
    given: dict[str, Any] = {key: value}
    first, second = fresh(name), fresh(name, **given)
    steps(first, 0, 2)
    notes = unpack(second[1], *pack(first[1]), arguments_of(name, given))
    found = in_force(second[1])[key]
    assert (tuple(found)[:2] if key == "betas" else found) == value
    # optimi keeps and tells its betas one by one
    assert notes and all(key.rstrip("s") in note for note in notes)
    back = unpack(first[1], *pack(second[1]), arguments_of(name, {}))
    assert len(back) == len(notes), "taken out of the configuration, it has its default again"


@pytest.mark.parametrize("name", [name for name in NAMES if OPTIMIZERS[name].low_precision_safe])
def test_small_updates_survive_in_bf16(name: str) -> None:
    """1000 updates of 2e-5 on weights of 1, where bf16's own step is 4e-3 to 8e-3."""
    weight = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = build(name, [weight], 2e-5, {"weight_decay": 0.0}, seed=1)
    for _ in range(1000):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert 1 - weight.float().mean().item() == pytest.approx(1000 * 2e-5, rel=0.25)


def test_safety_in_bf16_ends_where_it_is_turned_off() -> None:
    assert low_precision_safe("optimi-lion", {}) and low_precision_safe("ao-adamw8bit", {})
    assert not low_precision_safe("optimi-lion", {"kahan_sum": False})
    assert not low_precision_safe("ao-adamw8bit", {"bf16_stochastic_round": False})
    assert not low_precision_safe("torch-adamw", {}) and not low_precision_safe("bnb-adamw", {})


@pytest.mark.parametrize("name", NAMES)
def test_weights_for_use_come_and_go_without_a_trace(name: str) -> None:
    """Only schedule-free optimizers have others than those they train; looking at them changes no bit."""
    plain, looked = fresh(name), fresh(name)
    steps(plain, 0, 9)  # radam_schedulefree is silent for the first five
    for step in range(9):
        steps(looked, step, step + 1)
        live = [p.detach().clone() for p in looked[0].parameters()]
        with evaluation_weights(looked[1]):
            used = [p.detach().clone() for p in looked[0].parameters()]
    assert same(plain[0], looked[0])
    differ = not all(torch.equal(a, b) for a, b in zip(live, used, strict=True))
    assert differ is OPTIMIZERS[name].schedule_free
    settle(looked[1])
    assert all(torch.equal(p, old) for p, old in zip(looked[0].parameters(), used, strict=True))
