"""Stepping inside backward: the same numbers, gradients that are really freed, and nothing that is not finite."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from simpletuner.errors import NonFiniteError
from simpletuner.training.gradient_release import GradientRelease, PerParameter
from simpletuner.training.gradient_sums import Float32Sums
from simpletuner.training.guard import PATIENCE
from simpletuner.training.loop import train
from simpletuner.training.optimizers import arguments_of, build, pack, unpack
from simpletuner.training.step import Trainee

NAMES = ["torch-adamw", "torch-sgd", "optimi-lion", "adamw_schedulefree", "muon", "torch-adafactor"]


def trainee(name: str, release: bool, clip: float = 0.0, **more: Any) -> Trainee:
    made = toy.trainee(**more)
    made.optimizer = build(name, made.parameters, 0.05, {}, one_by_one=release)
    if release:
        assert isinstance(made.optimizer, PerParameter)
        made.release = GradientRelease(made.optimizer, clip)
    return made


def run(made: Trainee, start: int = 0, total: int = 4, **changes: Any) -> list[Any]:
    """The loop over one picture a step; its results."""
    results: list[Any] = []

    class Notes:
        def on_start(self, step: int) -> None: ...
        def acts_at(self, step: int) -> bool:
            return False

        def on_step_end(self, result: Any) -> None:
            results.append(result)

        def on_stop(self, step: int, finished: bool) -> None: ...

    batches = iter([toy.batch(n) for n in range(start, total)])
    train(made, toy.recipe(schedule=toy.Schedule("constant", 0.05, 0.0, 0, 9), **changes), batches, start, total,
          [Notes()], lambda: False)  # fmt: skip
    return results


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clip", [0.0, 0.02])
def test_it_computes_what_a_step_after_backward_computes(name: str, clip: float) -> None:
    after, inside = trainee(name, False), trainee(name, True, clip)
    expected = run(after, clip_norm=clip, clip_by_value=True)
    found = run(inside, clip_norm=clip, clip_by_value=True)
    torch.testing.assert_close(toy.flat(inside.transformer), toy.flat(after.transformer), rtol=1e-6, atol=1e-7)
    assert [r.grad_norm for r in found] == pytest.approx([r.grad_norm for r in expected], rel=1e-5)
    assert [r.skipped for r in found] == [None] * 4


def test_gradients_are_freed_one_by_one(tiny_sana: Path) -> None:
    """On a real Sana: never more than a few of its gradients are alive, where a step after backward needs all."""
    from diffusers import SanaTransformer2DModel

    model = SanaTransformer2DModel.from_pretrained(tiny_sana / "transformer")
    parameters = list(model.parameters())
    alive: list[int] = []

    def count(_: torch.Tensor) -> None:
        alive.append(sum(p.grad is not None for p in parameters))

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(count)  # called before the release, which is hooked later

    def backward() -> torch.Tensor:
        alive.clear()
        torch.manual_seed(0)
        config = model.config
        sample = model(
            torch.randn(1, config.in_channels, 4, 4),
            encoder_hidden_states=torch.randn(1, 5, config.caption_channels),
            timestep=torch.tensor([500.0]),
        ).sample
        return sample.square().mean()

    backward().backward()
    trained = sum(p.grad is not None for p in parameters)
    assert max(alive) == trained > 50
    for parameter in parameters:
        parameter.grad = None
    optimizer = build("torch-adamw", parameters, 1e-3, {}, one_by_one=True)
    assert isinstance(optimizer, PerParameter)
    before = [p.detach().clone() for p in parameters]
    GradientRelease(optimizer, 0.0).backward(backward())
    assert max(alive) <= 3 and not any(p.grad is not None for p in parameters)
    assert sum(not torch.equal(p, old) for p, old in zip(parameters, before, strict=True)) == trained


@pytest.fixture
def broken() -> Iterator[Trainee]:
    """A trainee one of whose parameters gets a gradient that is NaN while the loss is finite."""
    made = trainee("torch-adamw", True, ema=True)
    handle = made.transformer.time.register_hook(lambda grad: grad * float("nan"))
    yield made
    handle.remove()


def test_a_gradient_that_is_not_finite_leaves_its_parameter_alone(broken: Trainee) -> None:
    held = broken.transformer.time.detach().clone()
    others = broken.transformer.scale.detach().clone()
    results = run(broken, total=2)
    assert torch.equal(broken.transformer.time, held) and not broken.optimizer.state[broken.transformer.time]
    assert not torch.equal(broken.transformer.scale, others) and broken.transformer.scale.isfinite().all()
    assert (
        results[1].skipped.startswith("step 2: 1 of 4 parameters kept their values") and "1.png" in results[1].skipped
    )
    assert broken.ema is not None and all(shadow.isfinite().all() for shadow in broken.ema.shadow)


def test_a_parameter_that_stays_so_stops_the_run(broken: Trainee) -> None:
    with pytest.raises(NonFiniteError, match="gradient"):
        run(broken, total=PATIENCE)


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    made = trainee("torch-adamw", True)
    before = toy.flat(made.transformer)
    bad = toy.batch(0)
    bad.latents[0, 0, 0, 0] = float("nan")

    class Once:
        def __iter__(self) -> "Once":
            return self

        def __next__(self) -> Any:
            return bad

    train(made, toy.recipe(), iter(Once()), 0, 1, [], lambda: False)
    assert torch.equal(toy.flat(made.transformer), before) and not made.optimizer.state


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_goes_on_to_the_same_bits(name: str) -> None:
    whole, first, second = (trainee(name, True) for _ in range(3))
    run(whole, 0, 6)
    run(first, 0, 3)
    second.transformer.load_state_dict(first.transformer.state_dict())
    tensors, structure = pack(first.optimizer)
    unpack(second.optimizer, tensors, json.loads(json.dumps(structure)), arguments_of(name, {}))
    run(second, 3, 6)
    assert torch.equal(toy.flat(whole.transformer), toy.flat(second.transformer))


def test_sums_in_float32_round_once() -> None:
    """256 gradients of 1 after one of 256 add up to 512; bf16 stays at 256, as 257 is nothing it can hold."""
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    sums = Float32Sums([parameter, torch.nn.Parameter(torch.zeros(1))])
    for value in [256.0] + [1.0] * 256:
        parameter.grad = torch.full_like(parameter, value)
        sums.collect()
    sums.deliver()
    assert parameter.grad is not None and parameter.grad.dtype is torch.bfloat16
    assert parameter.grad.tolist() == [512.0, 512.0]
    sums.deliver()
    assert parameter.grad.tolist() == [512.0, 512.0], "delivered once"


def test_the_loop_sums_in_float32_where_asked() -> None:
    """Many small bf16 gradients: summed in float32 they come nearer to the float32 run's."""

    def grad_norm(dtype: torch.dtype, sums: bool) -> float:
        made = toy.trainee()
        for parameter in (made.transformer.scale, made.transformer.time):
            parameter.data = parameter.data.to(dtype)
        made.sums = Float32Sums(made.parameters) if sums else None
        norms: list[float] = []

        class Notes:
            def on_start(self, step: int) -> None: ...
            def acts_at(self, step: int) -> bool:
                return False

            def on_step_end(self, result: Any) -> None:
                norms.append(result.grad_norm)

            def on_stop(self, step: int, finished: bool) -> None: ...

        batches = iter([toy.batch(n % 4) for n in range(64)])
        train(made, toy.recipe(accumulation=64), batches, 0, 1, [Notes()], lambda: False)
        return norms[0]

    exact = grad_norm(torch.float32, False)
    errors = [abs(grad_norm(torch.bfloat16, sums) - exact) for sums in (True, False)]
    assert errors[0] < errors[1]
    assert grad_norm(torch.float32, True) == pytest.approx(exact, rel=1e-6)
