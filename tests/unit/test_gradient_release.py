"""Stepping inside backward: the same numbers, gradients that are really freed, and nothing that is not finite."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from simpletuner.errors import NonFiniteError, ResumeError
from simpletuner.training.gradient_release import GradientRelease, InParts, by_block
from simpletuner.training.gradient_sums import Float32Sums
from simpletuner.training.guard import PATIENCE
from simpletuner.training.loop import train
from simpletuner.training.optimizers import arguments_of, build, pack, unpack
from simpletuner.training.trainee import Trainee

NAMES = ["torch-adamw", "adamw_bf16", "torch-sgd", "optimi-lion", "adamw_schedulefree", "muon", "torch-adafactor"]


def trainee(name: str, release: bool, clip: float = 0.0, **more: Any) -> Trainee:
    made = toy.trainee(**more)
    made.optimizer = build(
        name, made.parameters, 0.05, {}, parts=[made.parameters[:2], made.parameters[2:]] if release else None
    )
    if release:
        assert isinstance(made.optimizer, InParts)
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


def go_on(first: Trainee, second: Trainee, name: str) -> None:
    """Three steps of one, and three more of another that has what a checkpoint of the first has."""
    run(first, 0, 3)
    second.transformer.load_state_dict(first.transformer.state_dict())
    tensors, structure = pack(first.optimizer)
    unpack(second.optimizer, tensors, json.loads(json.dumps(structure)), arguments_of(name, {}))
    run(second, 3, 6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clip", [0.0, 0.02])
def test_it_computes_what_a_step_after_backward_computes(name: str, clip: float) -> None:
    after, inside = trainee(name, False), trainee(name, True, clip)
    expected = run(after, clip_norm=clip, clip_by_value=True)
    found = run(inside, clip_norm=clip, clip_by_value=True)
    torch.testing.assert_close(toy.flat(inside.transformer), toy.flat(after.transformer), rtol=1e-6, atol=1e-7)
    assert [r.grad_norm for r in found] == pytest.approx([r.grad_norm for r in expected], rel=1e-5)
    assert [r.skipped for r in found] == [None] * 4


def guarded(**more: Any) -> Trainee:
    """A trainee whose optimizer guards itself: the first part is scale and time, the second words."""
    return trainee("adamw_bf16", True, **more)


@pytest.mark.parametrize("clip", [0.0, 0.02])
@pytest.mark.parametrize("whole", [False, True])
def test_the_device_steps_block_by_block_and_the_host_reads_late(whole: bool, clip: float) -> None:
    after, inside = trainee("adamw_bf16", False), guarded(clip=clip)
    assert inside.guards_itself and inside.release is not None and len(inside.optimizer.param_groups) == 2
    if whole:
        inside.graphs = toy.Replayed()  # type: ignore[assignment]
    expected = run(after, clip_norm=clip, clip_by_value=True)
    found = run(inside, clip_norm=clip, clip_by_value=True)
    torch.testing.assert_close(toy.flat(inside.transformer), toy.flat(after.transformer), rtol=1e-6, atol=1e-7)
    assert [r.grad_norm for r in found] == pytest.approx([r.grad_norm for r in expected], rel=1e-5)
    assert [r.skipped for r in found] == [None] * 4
    state = inside.optimizer.state_dict()["state"]
    assert [state[index]["step"] for index in range(4)] == [4] * 4


def test_a_block_whose_gradients_are_not_finite_waits_and_the_log_says_so() -> None:
    made = guarded(ema=True)
    handle = made.transformer.time.register_hook(lambda grad: grad * float("nan"))
    before = [p.detach().clone() for p in made.parameters]
    results = run(made, total=2)
    handle.remove()
    same = [torch.equal(a, b) for a, b in zip(before, made.parameters, strict=True)]
    assert same == [True, True, False, False]
    assert (
        results[1].skipped.startswith("step 2: 2 of 4 parameters kept their values") and "1.png" in results[1].skipped
    )
    assert made.ema is not None and made.ema.updates == 2, "the others were stepped, and are averaged"
    assert all(shadow.isfinite().all() for shadow in made.ema.shadow)
    state = made.optimizer.state_dict()["state"]
    assert [state[index]["step"] for index in range(4)] == [0, 0, 2, 2]
    run(made, 2, 3)
    assert not torch.equal(made.transformer.scale, before[0])


def test_such_a_block_stops_the_run_in_the_end() -> None:
    made = guarded()
    made.transformer.time.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(NonFiniteError, match="gradient"):
        run(made, total=PATIENCE + 4)


def test_parameters_without_a_gradient_do_not_hold_their_block_up() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    optimizer = build("adamw_bf16", model.parameters(), 0.1, {}, parts=[list(model.parameters())])
    assert isinstance(optimizer, InParts)
    release = GradientRelease(optimizer, 0.0)
    before = [p.detach().clone() for p in model.parameters()]
    release.backward(model["a"](torch.ones(1, 2)).sum(), torch.tensor(0.1))
    assert [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)] == [False, False, True, True]
    assert not any(p.grad is not None for p in model.parameters())
    release.backward(model["a"](torch.ones(1, 2)).sum() * float("inf"), torch.tensor(0.1))
    assert release.outcome()[1].item() is False and all(p.isfinite().all() for p in model.parameters())


def test_blocks_are_told_by_their_names(tiny_sana: Path) -> None:
    from diffusers import SanaTransformer2DModel

    model = SanaTransformer2DModel.from_pretrained(tiny_sana / "transformer")
    parts = by_block(model.named_parameters())
    assert [p for part in parts for p in part] == list(model.parameters())
    for block in model.transformer_blocks:
        assert [list(block.parameters())] == [part for part in parts if part[0] is next(block.parameters())]
    lycoris = [(f"lycoris_transformer_blocks_{n}_attn1_to_{q}.lokr_w1", torch.nn.Parameter(torch.ones(1)))
               for n in range(2) for q in "qkv"]  # fmt: skip
    assert [len(part) for part in by_block(lycoris)] == [3, 3]


@pytest.mark.parametrize("name", ["adamw_bf16", "torch-adamw"])
@pytest.mark.parametrize("turn", [(False, True), (True, False)])
def test_a_run_goes_on_with_it_or_without(name: str, turn: tuple[bool, bool]) -> None:
    whole, first, second = (trainee(name, released) for released in (turn[0], *turn))
    run(whole, 0, 6)
    go_on(first, second, name)
    torch.testing.assert_close(toy.flat(second.transformer), toy.flat(whole.transformer), rtol=1e-6, atol=1e-7)


def test_blocks_become_parameters_and_the_other_way_round() -> None:
    """On another device, say. optimi counts steps in the group: each parameter goes on with those of its own."""

    def made(*lengths: int) -> InParts:
        parameters = iter([torch.nn.Parameter(torch.ones(2)) for _ in range(4)])
        parts = [[next(parameters) for _ in range(length)] for length in lengths]
        return InParts(parts, lambda index, some: build("optimi-adamw", some, 0.1, {}))

    def steps(optimizer: torch.optim.Optimizer) -> list[int]:
        return [int(group["step"]) for group in optimizer.param_groups for _ in group["params"]]

    blocks = made(2, 1, 1)
    for members in (blocks.members, blocks.members[:2], blocks.members[:1]):
        for parameter in (p for some in members for p in some):
            parameter.grad = torch.ones(2)
        blocks.step()
        blocks.zero_grad()
    for lengths, expected in (((1, 1, 1, 1), [3, 3, 2, 1]), ((2, 2), [3, 3, 2, 2]), ((4,), [3] * 4)):
        other = made(*lengths)
        unpack(other, *pack(blocks), arguments_of("optimi-adamw", {}))
        assert steps(other) == expected
    with pytest.raises(ResumeError, match="another model"):
        unpack(made(2, 1), *pack(blocks), arguments_of("optimi-adamw", {}))


@pytest.mark.parametrize(("name", "most"), [("torch-adamw", 3), ("adamw_bf16", 30)])
def test_gradients_are_freed_as_they_come(name: str, most: int, tiny_sana: Path) -> None:
    """On a real Sana: never more than a few of its gradients are alive, or a block's; a step after backward needs all."""
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
    optimizer = build(name, parameters, 1e-3, {}, parts=by_block(model.named_parameters()))
    assert isinstance(optimizer, InParts)
    before = [p.detach().clone() for p in parameters]
    GradientRelease(optimizer, 0.0).backward(backward(), torch.tensor(1e-3))
    assert max(alive) <= most and not any(p.grad is not None for p in parameters)
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
    go_on(first, second, name)
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
