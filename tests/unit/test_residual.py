"""Gates, residual sums and modulated norms as operations: plain twins against autograd, and what the compilers make of them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from simpletuner.models.sana.kernels import residual, triton_found

SIZES = [(2, 5, 7), (1, 1, 4), (3, 4, 2)]  # pictures, tokens, channels
EPSILON = 1e-6
Tensors = list[torch.Tensor]


def inputs(batch: int, tokens: int, channels: int, dtype: torch.dtype = torch.float64) -> Tensors:
    """x, what a layer multiplies, its weight and bias, and a table of six rows; all want gradients."""
    generator = torch.Generator().manual_seed(batch + 10 * tokens + 100 * channels)
    shapes = [(batch, tokens, channels)] * 2 + [(channels, channels), (channels,), (batch, 6, channels)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def chain(x: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, table: torch.Tensor) -> Tensors:
    """Norm, gated sum with two readers, sum and norm, gated sum: as a block has them, in PyTorch's operations."""
    shift, scale, gate, shift_two, scale_two, gate_two = table.chunk(6, dim=1)
    normed = F.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale) + shift
    x = x + gate * F.linear(normed * z, weight, bias)
    x = x + F.linear(x * z, weight, bias)
    normed = F.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale_two) + shift_two
    return [x + gate_two * (normed * z), normed]


def operations(
    x: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, table: torch.Tensor
) -> Tensors:
    """The same by the operations, the bias lent."""
    modulation, gate, modulation_two, gate_two = table.split((2, 1, 2, 1), dim=1)
    x, normed = residual.norm(x, modulation, EPSILON)
    x, other = residual.gated_add_twice(x, F.linear(normed * z, weight, bias.detach()), gate, bias)
    x, normed = residual.add_norm(x, F.linear(other * z, weight, bias.detach()), modulation_two, EPSILON, bias)
    return [residual.gated_add(x, normed * z, gate_two), normed]


def gradients(function: Callable[..., Tensors], tensors: Tensors) -> tuple[torch.Tensor | None, ...]:
    first, second = function(*tensors)
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    return torch.autograd.grad(first.square().sum() + second.sin().sum(), wanted, allow_unused=True)


def norm_error(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found.detach().double() - true.detach()).norm() / true.detach().norm())


@pytest.mark.parametrize("size", SIZES)
def test_they_are_their_definition_and_their_gradients_are_true(size: tuple[int, int, int]) -> None:
    tensors = inputs(*size)
    for found, wanted in zip(operations(*tensors), chain(*tensors), strict=True):
        torch.testing.assert_close(found, wanted)
    for found, wanted in zip(gradients(operations, tensors), gradients(chain, tensors), strict=True):
        torch.testing.assert_close(found, wanted)


def test_against_finite_differences() -> None:
    x, y, _, _, table = inputs(2, 3, 5)
    assert torch.autograd.gradcheck(lambda *t: residual.gated_add(t[0], t[1], t[2][:, 2:3]), [x, y, table])
    assert torch.autograd.gradcheck(lambda *t: residual.gated_add_twice(t[0], t[1], t[2][:, 2:3]), [x, y, table])
    assert torch.autograd.gradcheck(lambda *t: residual.norm(t[0], t[1][:, :2], EPSILON), [x, table])
    assert torch.autograd.gradcheck(lambda *t: residual.add_norm(t[0], t[1], t[2][:, 3:5], EPSILON), [x, y, table])


@pytest.mark.parametrize("frozen", [(0,), (2, 3), (4,), (2, 3, 4), (0, 1, 2, 3), (1, 2, 3, 4)])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen: tuple[int, ...]) -> None:
    whole = gradients(chain, inputs(2, 5, 7))
    tensors = [tensor.requires_grad_(place not in frozen) for place, tensor in enumerate(inputs(2, 5, 7))]
    wanted = [gradient for place, gradient in enumerate(whole) if place not in frozen]
    for found, true in zip(gradients(operations, tensors), wanted, strict=True):
        torch.testing.assert_close(found, true)
    assert not any(out.requires_grad for out in operations(*(tensor.detach() for tensor in tensors)))


def test_a_reader_that_does_not_read_gives_no_gradient() -> None:
    x, y, _, bias, table = inputs(2, 4, 6)
    for place in (0, 1):
        for function in (
            lambda: residual.norm(x, table[:, :2], EPSILON),
            lambda: residual.add_norm(x, y, table[:, :2], EPSILON, bias),
            lambda: residual.gated_add_twice(x, y, table[:, :1], bias),
        ):
            both, alone = function(), [torch.zeros(2, 4, 6).double()] * 2
            alone[place] = torch.ones(2, 4, 6).double()
            found = torch.autograd.grad(both[place].sum(), [x, table], allow_unused=True)
            wanted = torch.autograd.grad(function(), [x, table], alone, allow_unused=True)
            for a, b in zip(found, wanted, strict=True):
                torch.testing.assert_close(a, b)


def test_a_gradient_that_nobody_wants_is_not_summed_nor_its_factor_kept() -> None:
    """With everything frozen but what passes through, as under an adapter."""
    x, y, _, bias, table = inputs(2, 4, 6)
    table, bias = table.detach(), bias.detach()
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        residual.gated_add(x, y, table[:, :1], bias)
    assert y.data_ptr() not in kept
    gradient = torch.randn_like(x)
    dx, dy, dgate, dbias = residual.gated_add_backward(gradient, None, None, table[:, :1], None)
    assert [dx.numel(), dgate.numel(), dbias.numel()] == [0, 0, 0]
    assert torch.equal(dy, gradient * table[:, :1])


@pytest.mark.parametrize("of_table", [torch.float32, torch.bfloat16])
def test_sums_are_float32_and_dtypes_are_kept(of_table: torch.dtype) -> None:
    """bfloat16 tokens and a table of either dtype: the first sum with float32 makes the stream float32, as in PyTorch."""
    x, y, _, bias, table = inputs(2, 40, 24, torch.bfloat16)
    table, bias = (t.detach().to(of_table).requires_grad_() for t in (table, bias))

    def both(norm: Any, add_norm: Any, x: Any, y: Any, table: Any, bias: Any) -> Tensors:
        kept, first = norm(x, table[:, :2], EPSILON)
        return [first, *add_norm(kept, y, table[:, 3:5], EPSILON, bias)]

    def plain_norm(x: Any, modulation: Any, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
        return x, F.layer_norm(x, x.shape[-1:], eps=epsilon) * (1 + modulation[:, 1:]) + modulation[:, :1]

    def plain_add_norm(x: Any, y: Any, modulation: Any, epsilon: float, bias: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return plain_norm(x + y + bias - bias.detach(), modulation, epsilon)

    given = [x, y, table, bias]
    outs = both(residual.norm, residual.add_norm, *given)
    assert [out.dtype for out in outs] == [torch.bfloat16, torch.bfloat16, of_table]
    exact = [t.detach().double().requires_grad_() for t in given]
    true = both(plain_norm, plain_add_norm, *exact)
    grads = [torch.randn_like(out) for out in true]
    found = torch.autograd.grad(outs, given, [g.to(out.dtype) for g, out in zip(grads, outs, strict=True)])
    wanted = torch.autograd.grad(true, exact, grads)
    assert [g.dtype for g in found] == [t.dtype for t in given]
    assert all(norm_error(a, b) < 6e-3 for a, b in zip((*outs, *found), (*true, *wanted), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_keep_torchs_rules(dtype: torch.dtype) -> None:
    x, y, _, bias, table = (tensor.detach() for tensor in inputs(2, 5, 6, dtype))
    checks = ("test_schema", "test_faketensor")

    def check(operator: Any, *given: Any) -> None:
        torch.library.opcheck(operator, given, test_utils=checks)

    check(residual.gated_add_forward, x, y, table[:, 2:3])
    for second in (None, y):
        check(residual.norm_forward, x, second, table[:, :2], EPSILON)
        check(residual.gated_add_backward, x, second, y, table[:, 2:3], bias)
        check(residual.gated_add_backward, x, second, None, table[:, 2:3], None)
    statistics = residual.norm_forward(x, None, table[:, :2], EPSILON)[2]
    for its_bias, summed in ((bias, True), (None, False)):
        check(residual.norm_backward, x, y, x, statistics, table[:, :2], its_bias, summed)


@pytest.mark.parametrize("frozen", [(), (2, 3, 4)])
def test_torch_compile_keeps_one_graph_and_every_gradient(frozen: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    tensors = [tensor.requires_grad_(place not in frozen) for place, tensor in enumerate(inputs(2, 5, 8))]
    compiled = torch.compile(operations, backend="aot_eager", fullgraph=True)
    for found, wanted in zip(gradients(compiled, tensors), gradients(chain, tensors), strict=True):
        torch.testing.assert_close(found, wanted)
    torch._dynamo.reset()


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, y, _, bias, table = inputs(2, 5, 6)
    with pytest.raises(
        ValueError, match=r"beside \[B, 1, C\] from the time; found \[2, 5, 6\], \[2, 5, 6\], \[2, 2, 6\]"
    ):
        residual.gated_add(x, y, table[:, :2])
    with pytest.raises(ValueError, match="all of one shape"):
        residual.add_norm(x, y[:, :3], table[:, :2], EPSILON)
    with pytest.raises(ValueError, match=r"the bias of 6 channels must be \[6\]; found \[5\]"):
        residual.gated_add(x, y, table[:, :1], bias[:5])


ROW = {"C": 2240, "MAIN": 2048, "REST": 256}
TILE = {"C": 2240, "ROWS": 32, "COLUMNS": 64}
ALL = {"PICTURE": True, "TOTAL": True}
# The plan of a launch, its constants, what its loop carries, how many registers its programs may have beside each other.
COMPILED = {
    "norm": ("NORM", {**ROW, "ADD": True, "STAGES": 3}, None, 80),
    "norm_backward": ("NORM_BACKWARD", {**ROW, **ALL, "STAGES": 3}, 8, 168),
    "gate": ("GATE", TILE, 0, 64),
    "gate_backward": ("GATE_BACKWARD", {**TILE, **ALL, "TWO": True}, 2, 102),
    "finish": (None, {"C": 2240, "EACH": 2, "TOTAL": True, "ROWS": 128, "COLUMNS": 32}, 1, 64),
}


@pytest.mark.skipif(not triton_found(), reason="triton is not installed: nothing to compile with")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_for_a_gpu_nothing_spills_and_loops_carry_their_sums(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a Hopper GPU that need not be there, at the real width."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    import triton
    from triton.backends.compiler import GPUTarget

    from simpletuner.models.sana.kernels import residual_triton as kernels

    plan, constants, carried, most = COMPILED[name]
    assert plan is None or getattr(kernels, plan).stages == constants.get("STAGES", 1)
    kernel = getattr(kernels, f"{name}_kernel")
    floats, numbers = ("statistics", "sums"), ("tokens", "rows", "run", "runs", "pictures")
    known = dict.fromkeys(floats, "*fp32") | dict.fromkeys(numbers, "i32") | {"epsilon": "fp32"}
    types = {key: known.get(key, "*bf16") for key in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, key in enumerate(kernel.arg_names) if types[key][0] == "*"}
    warps = kernels.FINISH_WARPS if plan is None else getattr(kernels, plan).warps
    source = triton.compiler.ASTSource(kernel, types, constants, aligned)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    loops = [
        line.split("iter_args(")[1].split(") ->")[0] if "iter_args" in line else ""
        for line in built.asm["ttir"].splitlines()
        if "scf.for" in line
    ]
    assert [loop.count("=") for loop in loops] == [carried or 0]
    (tmp_path / "built.cubin").write_bytes(built.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    said = subprocess.run([tool, "-res-usage", tmp_path / "built.cubin"], check=True, capture_output=True, text=True)
    registers, stack = (int(x) for x in re.search(r"REG:(\d+) STACK:(\d+)", said.stdout).groups())  # type: ignore[union-attr]
    assert stack == 0, "spilled"
    assert registers <= most, "fewer programs would fit beside each other"
    body = built.asm["ttgir"].split("scf.for", 1)[1].split("scf.yield", 1)[0]
    assert "convert_layout" not in body, "a row went through shared memory"


@pytest.mark.skipif(not triton_found(), reason="triton is not installed")
def test_a_row_is_cut_where_it_leaves_the_fewest_places_empty() -> None:
    from simpletuner.models.sana.kernels.residual_triton import row_pieces

    for channels in range(1, 5000):
        _, main, rest = row_pieces(channels).values()
        assert main <= channels <= main + rest and rest <= main
        assert main + rest < 2 * channels or channels == 1
    assert row_pieces(2240) == ROW
