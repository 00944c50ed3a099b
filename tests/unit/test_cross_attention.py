"""Cross-attention as one operator: its plain twin against the definition, and what Triton's compiler makes of the kernels."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from simpletuner.models.sana.kernels import cross_attention, triton_found

SIZES = [(2, 5, 4, 2, 8), (1, 1, 7, 1, 3), (3, 6, 1, 2, 4)]  # pictures, queries, keys, heads, width


def inputs(
    batch: int, tokens: int, keys: int, heads: int, width: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value, and a bias that hides more of each picture; the last picture's keys are hidden altogether."""
    generator = torch.Generator().manual_seed(tokens + 10 * keys)
    query = torch.randn(batch, tokens, heads, width, generator=generator, dtype=torch.float64)
    key_value = torch.randn(batch, keys, 2, heads, width, generator=generator, dtype=torch.float64)
    bias = torch.zeros(batch, keys, dtype=dtype)
    for picture in range(batch):
        bias[picture, keys - picture * keys // max(batch - 1, 1) :] = -10000
    return query.to(dtype).requires_grad_(), key_value.to(dtype).requires_grad_(), bias


def ordinary(query: torch.Tensor, key_value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """PyTorch's attention with a mask."""
    query, key, value = (part.transpose(1, 2) for part in (query, *key_value.unbind(2)))
    return F.scaled_dot_product_attention(query, key, value, bias[:, None, None]).transpose(1, 2)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_its_definition_and_its_gradients_are_true(size: tuple[int, int, int, int, int]) -> None:
    query, key_value, bias = inputs(*size)
    ours, expected = cross_attention.cross_attention(query, key_value, bias), ordinary(query, key_value, bias)
    torch.testing.assert_close(ours, expected)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    gradients = torch.autograd.grad(ours, (query, key_value), grad)
    for found, wanted in zip(gradients, torch.autograd.grad(expected, (query, key_value), grad), strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_picture_whose_keys_are_all_hidden_keeps_its_digits() -> None:
    """As if nothing were hidden: softmax does not see a constant, and float32 does not lose digits to -10000."""
    query, key_value, bias = inputs(1, 9, 6, 2, 8, torch.float32)
    hidden = cross_attention.cross_attention(query, key_value, bias - 10000)
    assert torch.equal(hidden, cross_attention.cross_attention(query, key_value, bias))


def test_hidden_keys_get_no_gradient() -> None:
    query, key_value, bias = inputs(2, 9, 6, 2, 8, torch.float32)
    bias = torch.zeros_like(bias)
    bias[1, 2:] = -10000
    (gradient,) = torch.autograd.grad(cross_attention.cross_attention(query, key_value, bias).square().sum(), key_value)
    assert not gradient[1, 2:].any() and gradient[0].all() and gradient[1, :2].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_keep_torchs_rules(dtype: torch.dtype) -> None:
    given = inputs(2, 5, 4, 2, 8, dtype)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(cross_attention.cross_attention_with_sums, given, test_utils=checks)
    given = tuple(x.detach() for x in given)
    out, lse = cross_attention.cross_attention_with_sums(*given)
    assert lse.shape == (2, 2, 5) and lse.dtype == torch.float32
    torch.library.opcheck(
        cross_attention.cross_attention_backward, (torch.randn_like(out), *given, out, lse), test_utils=checks
    )


def test_shapes_that_do_not_fit_are_refused() -> None:
    query, key_value, bias = inputs(2, 5, 4, 2, 8)
    with pytest.raises(ValueError, match=r"the bias\s+\[2, n\]; found \[2, 4, 2, 2, 8\] and \[2, 3\]"):
        cross_attention.cross_attention(query, key_value, bias[:, :3])


@pytest.mark.skipif(not triton_found(), reason="triton is not installed: nothing to compile with")
@pytest.mark.parametrize(("name", "carried"), [("forward", 3), ("query_backward", 1), ("key_backward", 2)])
def test_the_compiled_loops_carry_every_tensor_and_use_the_matrix_units(
    name: str, carried: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled here for a Hopper GPU that need not be there, with the real model's heads."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    import triton
    from triton.backends.compiler import GPUTarget

    from simpletuner.models.sana.kernels import cross_attention_triton as kernels

    plan = {"forward": kernels.FORWARD, "query_backward": kernels.QUERY, "key_backward": kernels.KEY}[name]
    constants = {"HEADS": 20, "D": 112, "WIDE": 128, "QUERIES": plan.queries, "KEYS": plan.keys, "STAGES": plan.stages}
    kernel = getattr(kernels, f"{name}_kernel")
    types = dict.fromkeys(kernel.arg_names, "*bf16") | dict.fromkeys(constants, "constexpr")
    known = {"line": "*fp32", "ends": "*i32", "lse": "*fp32", "pairs": "*fp32", "scale": "fp32"}
    known |= dict.fromkeys(("tokens", "keys", "parts", "share"), "i32")
    types |= {key: value for key, value in known.items() if key in types}
    aligned = {(i,): [["tt.divisibility", 16]] for i, key in enumerate(kernel.arg_names) if types[key][0] == "*"}
    source = triton.compiler.ASTSource(kernel, types, constants, aligned)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": plan.warps})
    loops = [
        line.split("iter_args(")[1].split(") ->")[0] for line in built.asm["ttir"].splitlines() if "scf.for" in line
    ]
    assert [loop.count("=") for loop in loops] == [carried]
    assert "wgmma.mma_async" in built.asm["ptx"] and not re.search(r"\bmma\.sync", built.asm["ptx"])
    assert built.metadata.shared <= 113 * 1024, "two programs must fit one multiprocessor"
