"""The seam between two blocks as one operation: its twin against autograd, its kernels compiled, and where blocks use it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from seam import EPSILON, chain, operation
from small_sana import base, velocity

from simpletuner.models import checkpointing
from simpletuner.models.sana import block_forward
from simpletuner.models.sana.kernels import gated_norm, triton_found
from simpletuner.models.sana.transformer import KERNELS

SIZES = [(2, 5, 7), (1, 1, 4), (3, 4, 2)]  # pictures, tokens, channels
Tensors = list[torch.Tensor]


def inputs(batch: int, tokens: int, channels: int, dtype: torch.dtype = torch.float64) -> Tensors:
    """x, y and a table of six rows; all want gradients."""
    generator = torch.Generator().manual_seed(batch + 10 * tokens + 100 * channels)
    shapes = [(batch, tokens, channels)] * 2 + [(batch, 6, channels)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def gradients(outs: Tensors, tensors: Tensors) -> tuple[torch.Tensor, ...]:
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    return torch.autograd.grad(outs[0].square().sum() + outs[1].sin().sum(), wanted)


@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,), (0, 1)])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_its_definition_and_its_gradients_are_true(size: tuple[int, int, int], frozen: tuple[int, ...]) -> None:
    tensors = [tensor.requires_grad_(place not in frozen) for place, tensor in enumerate(inputs(*size))]
    ours, wanted = operation(*tensors), chain(*tensors)
    for found, true in zip((*ours, *gradients(ours, tensors)), (*wanted, *gradients(wanted, tensors)), strict=True):
        torch.testing.assert_close(found, true)


def test_against_finite_differences_and_with_one_reader() -> None:
    tensors = inputs(2, 3, 5)
    assert torch.autograd.gradcheck(lambda *t: tuple(operation(*t)), tensors)
    for place in (0, 1):
        found = torch.autograd.grad(operation(*tensors)[place].square().sum(), tensors)
        wanted = torch.autograd.grad(chain(*tensors)[place].square().sum(), tensors)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_y_is_kept_only_for_gradients_of_the_table() -> None:
    x, y, table = inputs(2, 4, 6)
    for frozen in (False, True):
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.data_ptr()) or t, lambda t: t):
            operation(x, y, table.detach() if frozen else table)
        assert (y.data_ptr() in kept) != frozen


@pytest.mark.parametrize("of_table", [torch.float32, torch.bfloat16])
def test_sums_are_float32_and_dtypes_are_kept(of_table: torch.dtype) -> None:
    x, y, table = inputs(2, 40, 24, torch.bfloat16)
    table = table.detach().to(of_table).requires_grad_()
    outs = operation(x, y, table)
    assert [out.dtype for out in outs] == [of_table] * 2
    exact = [t.detach().double().requires_grad_() for t in (x, y, table)]
    true = chain(*exact)
    grads = [torch.randn_like(out) for out in true]
    found = torch.autograd.grad(outs, [x, y, table], [g.to(of_table) for g in grads])
    wanted = torch.autograd.grad(true, exact, grads)
    assert [g.dtype for g in found] == [torch.bfloat16, torch.bfloat16, of_table]
    for a, b in zip((*outs, *found), (*true, *wanted), strict=True):
        assert (a.detach().double() - b.detach()).norm() / b.detach().norm() < 8e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_keep_torchs_rules(dtype: torch.dtype) -> None:
    x, y, table = (tensor.detach() for tensor in inputs(2, 5, 6, dtype))
    checks = ("test_schema", "test_faketensor")
    gate, modulation = table[:, 5:], table[:, :2]
    torch.library.opcheck(gated_norm.gated_norm_forward, (x, y, gate, modulation, EPSILON), test_utils=checks)
    statistics = gated_norm.plain_forward(x, y, gate, modulation, EPSILON)[2]
    for factor in (y, None):
        given = (x, y, x, statistics, factor, gate, modulation)
        torch.library.opcheck(gated_norm.gated_norm_backward, given, test_utils=checks)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, y, table = inputs(2, 5, 6)
    with pytest.raises(ValueError, match=r"beside \[B, 1, C\]"):
        gated_norm.gated_norm(x, y, table[:, :2], table[:, :2], EPSILON)
    with pytest.raises(ValueError, match=r"beside \[B, 2, C\]"):
        gated_norm.gated_norm(x, y, table[:, :1], table[:, :1], EPSILON)
    with pytest.raises(ValueError, match="all of one shape"):
        gated_norm.gated_norm(x, y[:, :3], table[:, :1], table[:, :2], EPSILON)


def test_blocks_meet_in_it_unless_the_second_is_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks, one seam; the same answer either way."""
    model, calls = base().train(), []
    whole = gated_norm.gated_norm
    monkeypatch.setattr(gated_norm, "gated_norm", lambda *given: calls.append(1) or whole(*given))
    assert block_forward.use_plain(model, KERNELS) is None
    at_once = velocity(model)
    assert len(calls) == 1
    checkpointing.enable(model, model.transformer_blocks, 2)
    apart = velocity(model)
    assert len(calls) == 1
    torch.testing.assert_close(at_once, apart)
    copied: list[torch.Size] = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda t, **kept: copied.append(t.shape) or clone(t, **kept))
    velocity(model)
    assert len(copied) == 1, "the picture turned round; what the first block made is not copied for the second"
    model.disable_gradient_checkpointing()
    model.transformer_blocks[1].norm1 = torch.nn.LayerNorm(16, elementwise_affine=True)
    velocity(model)
    assert len(calls) == 1, "a norm with weights is not the operation's"


@pytest.mark.skipif(not triton_found(), reason="triton is not installed: nothing to compile with")
@pytest.mark.parametrize(
    ("name", "carried", "most", "spilled", "ahead"), [("forward", 0, 96, 0, 4), ("backward", 8, 168, 48, 8)]
)
def test_compiled_for_a_gpu_rows_stay_in_registers_and_loads_are_ahead(
    name: str, carried: int, most: int, spilled: int, ahead: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a Hopper GPU that need not be there, at the real width."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    import triton
    from triton.backends.compiler import GPUTarget

    from simpletuner.models.sana.kernels import gated_norm_triton as kernels

    plan, kernel = getattr(kernels, name.upper()), getattr(kernels, f"{name}_kernel")
    constants: dict[str, Any] = {"C": 2240, "MAIN": 2048, "REST": 256, "STAGES": plan.stages}
    constants |= {"PICTURE": True} if name == "backward" else {}
    known = dict.fromkeys(("statistics", "sums"), "*fp32") | dict.fromkeys(kernels.NUMBERS, "i32") | {"epsilon": "fp32"}
    types = {key: known.get(key, "*bf16") for key in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, key in enumerate(kernel.arg_names) if types[key][0] == "*"}
    source = triton.compiler.ASTSource(kernel, types, constants, aligned)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=kernels.launch_options(plan))
    (loop,) = [line for line in built.asm["ttir"].splitlines() if "scf.for" in line]
    assert (loop.split("iter_args(")[1].split(") ->")[0].count("=") if "iter_args" in loop else 0) == carried
    (tmp_path / "built.cubin").write_bytes(built.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    said = subprocess.run([tool, "-res-usage", tmp_path / "built.cubin"], check=True, capture_output=True, text=True)
    registers, stack = (int(x) for x in re.search(r"REG:(\d+) STACK:(\d+)", said.stdout).groups())  # type: ignore[union-attr]
    assert stack <= spilled and registers <= most
    body = built.asm["ttgir"].split("scf.for", 1)[1].split("scf.yield", 1)[0]
    assert "convert_layout" not in body and body.count("async_copy_global_to_local") == ahead, "two pieces a row"
