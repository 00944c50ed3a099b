"""Weights that lie together: one product of them, its gradients, and what others see of the parameters."""

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from simpletuner.models.sana import joined

WIDTHS = {"equal": (8, 8, 8), "two": (8, 16)}


def layers(widths: tuple[int, ...], dtype: torch.dtype = torch.float64, together: bool = True) -> torch.nn.ModuleList:
    torch.manual_seed(3)
    made = torch.nn.ModuleList([torch.nn.Linear(4, width, dtype=dtype) for width in widths])
    if together:
        assert joined.lay_together([layer.weight for layer in made])
        assert joined.lay_together([layer.bias for layer in made])
    return made


def call(made: torch.nn.ModuleList, tokens: torch.Tensor, biased: bool = True) -> torch.Tensor:
    biases = [layer.bias for layer in made] if biased else []
    return joined.joined_linear(tokens, [layer.weight for layer in made], biases)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
def test_it_is_the_layers_one_after_the_other(widths: tuple[int, ...], together: bool, biased: bool) -> None:
    made = layers(widths, together=together)
    assert joined.lie_together([layer.weight for layer in made]) == together
    tokens = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    given = [tokens, *(p for layer in made for p in ((layer.weight, layer.bias) if biased else (layer.weight,)))]
    ours = call(made, tokens, biased)
    expected = torch.cat([F.linear(tokens, x.weight, x.bias if biased else None) for x in made], dim=-1)
    torch.testing.assert_close(ours, expected)
    grad = torch.randn(3, 2, sum(widths), dtype=torch.float64).transpose(0, 1)
    for a, b in zip(torch.autograd.grad(ours, given, grad), torch.autograd.grad(expected, given, grad), strict=True):
        torch.testing.assert_close(a, b)


def test_together_nothing_is_copied_and_values_stay() -> None:
    apart, made = layers((8, 8, 8), together=False), layers((8, 8, 8))
    assert all(torch.equal(a, b) for a, b in zip(apart.parameters(), made.parameters(), strict=True))
    weights = [layer.weight for layer in made]
    whole = joined._whole(weights)
    assert whole.data_ptr() == weights[0].data_ptr() and torch.equal(whole, torch.cat(weights))
    place = weights[1].data_ptr()
    assert joined.lay_together(weights) and weights[1].data_ptr() == place, "again is the same as once"
    assert not joined.lie_together([weights[0], weights[2]]) and not joined.lie_together(weights[::-1])


def test_what_cannot_lie_together_is_left() -> None:
    one, other = torch.nn.Parameter(torch.ones(8, 4)), torch.nn.Parameter(torch.ones(8, 4).bfloat16())
    odd = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    for parameters in ([one, other], odd):
        places = [p.data_ptr() for p in parameters]
        assert not joined.lay_together(parameters) and [p.data_ptr() for p in parameters] == places


def test_optimizers_copies_and_files_see_parameters_as_ever(tmp_path) -> None:
    """Steps in place reach the product; a copy has its own memory; a file holds each by its name."""
    made, apart = layers((8, 8), torch.float32), layers((8, 8), torch.float32, together=False)
    tokens = torch.randn(2, 3, 4, requires_grad=True)
    for model in (made, apart):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(3):
            torch.cat([F.linear(tokens, x.weight, x.bias) for x in model], -1).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert joined.lie_together([layer.weight for layer in made])
    assert all(torch.equal(a, b) for a, b in zip(apart.parameters(), made.parameters(), strict=True))
    torch.testing.assert_close(call(made, tokens), torch.cat([x(tokens) for x in apart], -1))
    twin = copy.deepcopy(made)
    assert not joined.lie_together([layer.weight for layer in twin])
    save_file(made.state_dict(), tmp_path / "weights.safetensors")
    save_file(apart.state_dict(), tmp_path / "apart.safetensors")
    assert (tmp_path / "weights.safetensors").read_bytes() == (tmp_path / "apart.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    made.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert joined.lie_together([layer.weight for layer in made])
    torch.testing.assert_close(call(made, tokens), call(twin, tokens))


def test_the_operators_keep_torchs_rules_and_compile_whole() -> None:
    torch._dynamo.reset()
    made = layers((8, 8), torch.float32)
    tokens = torch.randn(2, 3, 4, requires_grad=True)
    weights, biases = [x.weight for x in made], [x.bias for x in made]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(joined.joined_linear, (tokens, weights, biases), test_utils=checks)
    torch.library.opcheck(joined.joined_linear, (tokens, weights, []), test_utils=checks)
    for biased in (True, False):
        given = (torch.randn(2, 3, 16), tokens, weights, biased)
        torch.library.opcheck(joined.joined_linear_backward, given, test_utils=checks)
    parameters = [tokens, *made.parameters()]
    compiled = torch.compile(lambda t: call(made, t * 2).sin(), backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(tokens).square().sum(), parameters)
    wanted = torch.autograd.grad(call(made, tokens * 2).sin().square().sum(), parameters)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()
