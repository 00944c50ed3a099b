"""What only a GPU can show of optimizers and EMA."""

import json
from typing import Any

import pytest
import torch

from simpletuner.training import eight_bits
from simpletuner.training.ema import Ema
from simpletuner.training.guarded_adam import control_of, plain_mix
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


GPU = torch.device("cuda")
LENGTHS = (4096, 256 * 4099, 5000, 1 << 20, 7)  # what is no whole block keeps states of the weight's dtype
RATE = 1e-3


def eight(dtype: torch.dtype, seed: int = 1) -> tuple[list[torch.nn.Parameter], Any]:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(n, device=GPU).to(dtype)) for n in LENGTHS]
    return weights, build("ao-adamw8bit", weights, RATE, {"weight_decay": 0.1}, seed=seed)


def give(weights: list[torch.nn.Parameter], step: int, shifted: bool = False) -> None:
    generator = torch.Generator(GPU).manual_seed(step)
    for weight in weights:
        spread = 10 ** (8 * torch.rand(-(-len(weight) // 256), 1, generator=generator, device=GPU) - 8)
        spread[::5] = 0
        whole = torch.randn(len(spread), 256, generator=generator, device=GPU) * spread
        grad = whole.flatten()[: len(weight)].to(weight.dtype)
        weight.grad = torch.cat([grad[:1], grad])[1:] if shifted else grad


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_in_8_bits_are_those_of_the_plain_twin(dtype: torch.dtype, shifted: bool) -> None:
    """Also where addresses allow no loads of several numbers."""
    weights, optimizer = eight(dtype)
    assert optimizer.guarded_step
    from simpletuner.training.adamw8bit import updated

    errors = []
    for step in range(4):
        give(weights, step, shifted)
        rows = optimizer._rows(optimizer.param_groups[0])
        taken = torch.tensor(step + 1.0, dtype=torch.float64, device=GPU)
        rate = torch.full((), RATE, device=GPU)
        scale, good = torch.full((), 0.5, device=GPU), torch.tensor(True, device=GPU)
        control = control_of(plain_mix((0.9, 0.999), taken), taken, rate, scale, good)
        wanted = [updated(tuple(t.clone() for t in row), control, (1e-8, 0.1)) for row in rows if len(row) == 6]
        optimizer.guarded_step(rate, scale, good)
        for row, (weight, *codes_and_scales) in zip([r for r in rows if len(r) == 6], wanted, strict=True):
            for found, exact in zip(row[2:4], codes_and_scales[:2], strict=True):
                off = (found.int() - exact.int()).abs()
                print(step, len(weight), "codes apart", off.max().item(), (off > 0).float().mean().item())
                assert off.max() <= 1 and (off > 0).float().mean() <= 1e-3
            for found, exact in zip(row[4:], codes_and_scales[2:], strict=True):
                torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)
            if dtype is torch.float32:
                torch.testing.assert_close(row[0], weight, rtol=1e-4, atol=1e-5)
            else:
                place = torch.frexp(weight.abs().clamp(min=1e-2)).exponent - 8  # a bf16 number has 8 digits
                errors.append((row[0].float() - weight) / 2.0**place)
                assert errors[-1].abs().max() <= 1.01
    if errors:
        together = torch.cat(errors)
        print("mean", together.mean().item(), "deviation", together.std().item())
        assert together.mean().abs() < 4 * together.std() / len(together) ** 0.5 + 1e-4, "right in the mean"
        first, second = errors[-1][: len(errors[-1]) // 2].sign(), errors[-1][len(errors[-1]) // 2 :].sign()
        assert (first * second).mean().abs() < 0.01, "halves share no random bits"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_in_8_bits_in_a_graph_is_the_plain_one_and_can_be_left(dtype: torch.dtype) -> None:
    (plain, first), (replayed, second) = eight(dtype), eight(dtype)
    rate, one, good = (torch.full((), n, device=GPU) for n in (RATE, 1.0, True))
    second.make_states()
    for weight in replayed:
        weight.grad = torch.zeros_like(weight)
    graph = torch.cuda.CUDAGraph()
    taken = 0
    for step in range(8):
        bad = step == 5
        give(plain, step)
        for a, b in zip(replayed, plain, strict=True):
            a.grad.copy_(b.grad)
            if bad:
                b.grad[0] = a.grad[0] = torch.nan
        good.fill_(not bad)
        if step == 2:
            with torch.cuda.graph(graph):
                second.guarded_step(rate, one, good)
            tables = second.after_capture()  # the graph reads them: without this name they would be gone
        if step >= 2:
            graph.replay()
        else:
            second.guarded_step(rate, one, good)
        before = [weight.detach().clone() for weight in plain]
        first.guarded_step(rate, one, good)
        taken += not bad
        assert all(torch.equal(a, b) for a, b in zip(before, plain, strict=True)) is bad
        assert all(torch.equal(a, b) for a, b in zip(plain, replayed, strict=True)), step
    (tensors, tree), (others, other_tree) = pack(first), pack(second)
    assert tree == other_tree and all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert [float(state["step"]) for state in first.state.values()] == [taken] * len(LENGTHS)
    assert len(tables) == 3, "one for each kind of tensors"


def test_the_plain_step_in_8_bits_compiles_nothing_and_is_near_torchaos() -> None:
    from torchao.optim import AdamW8bit

    weights, optimizer = eight(torch.float32)
    theirs = [torch.nn.Parameter(w.detach().clone()) for w in weights[:2]]
    library = AdamW8bit(theirs, RATE, weight_decay=0.1)
    compiled: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda f, **_: compiled.append(f) or f)
        for step in range(3):
            generator = torch.Generator(GPU).manual_seed(step)
            for a in weights:
                a.grad = torch.randn(a.shape, generator=generator, device=GPU) + 2  # a mean that is not near 0
            for a, b in zip(weights, theirs, strict=False):
                b.grad = a.grad.clone()
            optimizer.step()
            assert not compiled
            library.step()
            assert len(compiled) == 2
            compiled.clear()
    for a, b in zip(weights, theirs, strict=False):
        assert ((a - b).abs() > 1e-5).float().mean() < 0.01
    assert eight_bits.tables(GPU).shape == (4, 256)
