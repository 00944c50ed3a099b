"""adamw_bf16: rounding is unbiased and repeatable, and its maths are AdamW's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.training.adamw_bf16 import AdamWBF16, random_bits, stochastic_round
from simpletuner.training.seeds import mixed_seed

DRAWS = 2**16
finite = st.floats(-(2.0**100), 2.0**100, width=32)
EVERY = torch.arange(DRAWS, dtype=torch.int32)  # each possible draw once: the mean over them is the expectation


@given(finite)
@settings(max_examples=100)
def test_the_mean_over_all_draws_is_the_number_itself(number: float) -> None:
    rounded = stochastic_round(torch.full((DRAWS,), number, dtype=torch.float32), EVERY)
    assert rounded.dtype is torch.bfloat16
    exact = torch.tensor(number, dtype=torch.float32).double().item()
    assert rounded.double().mean().item() == pytest.approx(exact, rel=1e-9, abs=1e-300)


@given(finite)
@settings(max_examples=100)
def test_it_becomes_one_of_its_two_neighbours_and_what_bf16_holds_stays(number: float) -> None:
    rounded = stochastic_round(torch.full((DRAWS,), number, dtype=torch.float32), EVERY)
    values = sorted({value.item() for value in rounded.unique()})
    assert len(values) <= 2 and values[0] <= torch.tensor(number, dtype=torch.float32).item() <= values[-1]
    held = rounded[0].float()
    assert (stochastic_round(held.expand(DRAWS).contiguous(), EVERY).float() == held).all()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_its_maths_are_adamw(weight_decay: float) -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 30).reshape(5, 6)) for _ in range(2))
    arguments = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": weight_decay}
    first, second = AdamWBF16([ours], **arguments), torch.optim.AdamW([theirs], **arguments)  # type: ignore[arg-type]
    for _ in range(20):
        ours.grad = torch.randn(5, 6)
        theirs.grad = ours.grad.clone()
        first.step()
        second.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_step_in_bf16_is_unbiased() -> None:
    """The mean over many seeds of one update of bf16 weights is the update in float32."""
    weight = torch.full((4096,), 1.0, dtype=torch.bfloat16)
    parameter = torch.nn.Parameter(weight.clone())
    settings_ = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}
    exact = torch.nn.Parameter(weight.float())
    exact.grad = torch.ones(4096)
    torch.optim.AdamW([exact], **settings_).step()  # type: ignore[arg-type]
    means = []
    for seed in range(64):
        parameter.data.copy_(weight)
        parameter.grad = torch.ones_like(parameter)
        AdamWBF16([parameter], seed=seed, **settings_).step()  # type: ignore[arg-type]
        means.append(parameter.double().mean())
    # 64 * 4096 draws of a step of 2^-8: three standard deviations are below 3e-6
    assert torch.stack(means).mean().item() == pytest.approx(exact[0].item(), abs=5e-6)


def test_shapes_and_layouts_do_not_change_what_is_computed() -> None:
    """Scalars, empty-sided and channels-last parameters take the step of torch's AdamW."""
    torch.manual_seed(1)
    shapes: list[tuple[int, ...]] = [(7, 5), (3,), (), (40, 3), (2, 3, 2, 2)]
    start = [torch.randn(shape) for shape in shapes]
    sides = [[torch.nn.Parameter(w.clone()) for w in start] for _ in range(2)]
    sides[0][4].data = sides[0][4].data.to(memory_format=torch.channels_last)
    optimizers = [AdamWBF16(sides[0], lr=1e-2), torch.optim.AdamW(sides[1], lr=1e-2, eps=1e-6)]
    for _ in range(3):
        for a, b in zip(*sides, strict=True):
            b.grad = torch.randn(b.shape)
            a.grad = b.grad.to(memory_format=torch.channels_last) if b.ndim == 4 else b.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(*sides, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_random_bits_are_uniform_and_independent() -> None:
    bits = random_bits(3, 100_001, torch.Generator().manual_seed(1))
    assert bits.shape == (3, 100_001) and bits.min() >= 0 and bits.max() < 2**16
    for bit in range(16):  # each is on in half of the draws: six standard deviations
        assert ((bits >> bit) & 1).double().mean().item() == pytest.approx(0.5, abs=6 * 0.5 / 300_003**0.5)
    centred = bits.double() - bits.double().mean(1, keepdim=True)
    assert torch.corrcoef(centred).fill_diagonal_(0).abs().max() < 0.02
    assert abs(torch.corrcoef(torch.stack([centred[0, :-1], centred[0, 1:]]))[0, 1]) < 0.02
    assert torch.equal(bits, random_bits(3, 100_001, torch.Generator().manual_seed(1)))


def test_seeds_of_neighbouring_positions_differ() -> None:
    seeds = {mixed_seed(seed, position) for seed in range(20) for position in range(50)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**63 for seed in seeds)
