"""The hand-written operations of a Sana block: their plain twins against autograd, their kernels in the interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from simpletuner.models.sana import attention
from simpletuner.models.sana.kernels import depthwise, linear_attention, triton_found

SIZES = [(1, 3, 5, 3), (2, 4, 1, 2), (1, 1, 1, 1), (1, 2, 3, 4)]


def inputs(
    batch: int, height: int, width: int, channels: int, dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(batch + 10 * height + 100 * width)
    shapes = [(batch, height * width, 2 * channels), (2 * channels, 1, 3, 3), (2 * channels,)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def naive(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Token by token, without a convolution: what the words of the definition say."""
    silu = F.pad(F.silu(x).unflatten(1, (height, width)), (0, 0, 1, 1, 1, 1))
    near = [silu[:, i : i + height, j : j + width] * weight[:, 0, i, j] for i in range(3) for j in range(3)]
    value, gate = (sum(near) + bias).chunk(2, dim=-1)
    return (value * F.silu(gate)).flatten(1, 2)


def naive_attention(qkv: torch.Tensor) -> torch.Tensor:
    query, key, value = qkv.unbind(2)
    weights = torch.einsum("bihd,bjhd->bhij", query.relu(), key.relu())
    return torch.einsum("bhij,bjhd->bihd", weights / (weights.sum(-1, keepdim=True) + 1e-15), value)


def random_qkv(batch: int, tokens: int, heads: int, width: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tokens)
    made = torch.randn(batch, tokens, 3, heads, width, generator=generator, dtype=torch.float64)
    return (made + 0.1 * made.sign()).to(dtype).requires_grad_()  # away from the kink of ReLU, for finite differences


@pytest.mark.parametrize("size", SIZES)
def test_depthwise_is_its_definition_and_its_gradients_are_true(size: tuple[int, int, int, int]) -> None:
    tensors, (height, width) = inputs(*size), size[1:3]
    ours = depthwise.gated_depthwise(*tensors, height, width)
    expected = naive(*tensors, height, width)
    torch.testing.assert_close(ours, expected)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    gradients = torch.autograd.grad(ours, tensors, grad)
    for found, wanted in zip(gradients, torch.autograd.grad(expected, tensors, grad), strict=True):
        torch.testing.assert_close(found, wanted)
    assert torch.autograd.gradcheck(lambda *t: depthwise.gated_depthwise(*t, height, width), tensors)


@pytest.mark.parametrize("size", SIZES)
def test_a_bias_inside_x_gets_its_gradient_from_the_operation(size: tuple[int, int, int, int]) -> None:
    """Added without a gradient and handed over, beside added with one."""
    (x, *others), (height, width) = inputs(*size), size[1:3]
    bias = torch.linspace(-1, 1, x.shape[2], dtype=torch.float64, requires_grad=True)
    ours = depthwise.gated_depthwise(x + bias.detach(), *others, height, width, bias)
    expected = naive(x + bias, *others, height, width)
    torch.testing.assert_close(ours, expected)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    tensors = [x, *others, bias]
    gradients = torch.autograd.grad(ours, tensors, grad)
    for found, wanted in zip(gradients, torch.autograd.grad(expected, tensors, grad), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("size", [(1, 5, 2, 4), (2, 7, 1, 3), (1, 1, 1, 2)])
def test_linear_attention_is_its_definition_and_its_gradient_is_true(size: tuple[int, int, int, int]) -> None:
    qkv = random_qkv(*size)
    ours, expected = linear_attention.linear_attention(qkv), naive_attention(qkv)
    torch.testing.assert_close(ours, expected)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (found,), (wanted,) = torch.autograd.grad(ours, qkv, grad), torch.autograd.grad(expected, qkv, grad)
    torch.testing.assert_close(found, wanted)
    if size[1] > 1:  # one token's weight is 1 whatever q and k, unless no channel is above zero in both
        assert torch.autograd.gradcheck(linear_attention.linear_attention, qkv)


def test_linear_attention_is_the_processors() -> None:
    """The same numbers as ``attention.linear_attention``, which is held against diffusers."""
    qkv = random_qkv(2, 40, 3, 32, torch.float32).detach()
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    expected = attention.linear_attention(query.transpose(2, 3), key, value.transpose(2, 3)).permute(0, 3, 1, 2)
    torch.testing.assert_close(linear_attention.linear_attention(qkv), expected)


def test_a_head_that_sees_nothing_gives_zeros_and_finite_gradients() -> None:
    """No key above zero: the divisor is ε alone."""
    qkv = -torch.ones(1, 4, 3, 1, 16)
    qkv.requires_grad_()
    out = linear_attention.linear_attention(qkv)
    (gradient,) = torch.autograd.grad(out.sum(), qkv)
    assert not out.any() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_sums_are_float32_and_dtypes_are_kept(weights: torch.dtype) -> None:
    """bfloat16 tokens with the weights an autocast region gives: only the result's rounding is left."""
    tensors = inputs(2, 6, 5, 8, torch.bfloat16)
    tensors = [tensors[0], *(t.detach().to(weights).requires_grad_() for t in tensors[1:])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = depthwise.gated_depthwise(*tensors, 6, 5)
    gradients = torch.autograd.grad(ours, tensors, torch.ones_like(ours))
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = naive(*exact, 6, 5)
    wanted = torch.autograd.grad(expected, exact, torch.ones_like(expected))
    assert ours.dtype == torch.bfloat16 and [g.dtype for g in gradients] == [torch.bfloat16, weights, weights]
    for found, true in zip((ours, *gradients), (expected, *wanted), strict=True):
        assert (found.double() - true).norm() / true.norm() < (2.5e-3 if found.dtype == torch.bfloat16 else 1e-5)


def test_strided_tokens_and_gradients() -> None:
    tensors = inputs(2, 3, 4, 4)
    grad = torch.randn(2, 4, 12, dtype=torch.float64).transpose(1, 2)
    strided = tensors[0].detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert not strided.is_contiguous() and not grad.is_contiguous()
    found = torch.autograd.grad(depthwise.gated_depthwise(strided, *tensors[1:], 3, 4), [strided, *tensors[1:]], grad)
    wanted = torch.autograd.grad(naive(*tensors, 3, 4), tensors, grad)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_keep_torchs_rules(dtype: torch.dtype) -> None:
    """Shapes and dtypes of the compiler's stand-ins, no aliases, gradients registered: torch's own check."""
    tensors = inputs(2, 3, 4, 2, dtype)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    inner = tensors[2].detach().float().requires_grad_()
    for given in ((*tensors, 3, 4), (*tensors, 3, 4, inner)):
        torch.library.opcheck(depthwise.gated_depthwise, given, test_utils=checks)
    grad = torch.randn(2, 12, 2).to(dtype)
    torch.library.opcheck(depthwise.gated_depthwise_backward, (grad, *tensors, 3, 4), test_utils=checks)
    qkv = random_qkv(1, 5, 2, 16, dtype)
    torch.library.opcheck(linear_attention.linear_attention_with_state, (qkv,), test_utils=checks)
    state = linear_attention.plain_forward(qkv.detach())[1]
    arguments = (torch.randn(1, 5, 2, 16).to(dtype), qkv, state)
    torch.library.opcheck(linear_attention.linear_attention_backward, arguments, test_utils=checks)


def test_torch_compile_keeps_the_gradients() -> None:
    """torch 2.11 once gave silent zeros here, for another way of writing the operation."""
    torch._dynamo.reset()
    tensors, qkv = inputs(1, 3, 4, 16, torch.float32), random_qkv(1, 12, 1, 16, torch.float32)

    def both(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, qkv: torch.Tensor) -> torch.Tensor:
        attended = linear_attention.linear_attention(qkv * 2).flatten(2)
        return depthwise.gated_depthwise(x * 2, weight, bias, 3, 4) + attended

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(*tensors, qkv).square().sum(), [*tensors, qkv])
    wanted = torch.autograd.grad(both(*tensors, qkv).square().sum(), [*tensors, qkv])
    for a, b in zip(found, wanted, strict=True):
        assert a.any()
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, weight, bias = inputs(1, 3, 4, 2)
    with pytest.raises(ValueError, match="tokens"):
        depthwise.gated_depthwise(x, weight, bias, 3, 5)
    with pytest.raises(ValueError, match=r"for 4 channels weight must be \[4, 1, 3, 3\]"):
        depthwise.gated_depthwise(x, weight[:2], bias, 3, 4)
    with pytest.raises(ValueError, match=r"inner_bias must be \[4\]"):
        depthwise.gated_depthwise(x, weight, bias, 3, 4, bias[:1])
    with pytest.raises(ValueError, match="qkv must be"):
        linear_attention.linear_attention(x)


def test_triton_is_not_imported_unasked() -> None:
    script = (
        "import sys\nfrom simpletuner.models.sana.kernels import cross_attention, depthwise, linear_attention\n"
        "sys.exit(any(name.endswith('_triton') or name == 'triton.runtime' for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.skipif(not triton_found(), reason="triton is not installed: its kernels cannot be interpreted")
def test_the_kernels_in_the_interpreter() -> None:
    """Odd sizes, two dtypes, strided gradients; order of programs and double writes: see the script."""
    script = Path(__file__).parents[1] / "kernels_in_interpreter.py"
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=280, env=os.environ.copy())
    assert run.returncode == 0, run.stderr[-3000:]
    results = json.loads(run.stdout.splitlines()[-1])
    assert len(results) == 30
    for case, found in results.items():
        # The interpreter cuts bfloat16 off instead of rounding: twice the error, 4e-3, and twice in one chain.
        limit = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1.2e-2}[case.split(".")[-1]]
        assert all(error < limit for error in found["errors"]), (case, found)
        assert found["same"], f"{case}: the order of programs changes the result"
        assert found["doubled"] == 0, f"{case}: {found['doubled']} addresses are written twice"


def stack_bytes(cubin: bytes, folder: Path) -> int:
    """What a thread keeps in memory because its registers do not suffice, by the tool that Triton brings along."""
    import triton

    (folder / "code.cubin").write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    said = subprocess.run([tool, "-res-usage", folder / "code.cubin"], capture_output=True, text=True, timeout=60)
    return int((said.stdout + said.stderr).split("STACK:")[1].split()[0])


@pytest.mark.skipif(not triton_found(), reason="triton is not installed: nothing to compile with")
@pytest.mark.parametrize(
    ("name", "ahead", "carried"),
    [
        ("forward", False, 16), ("forward", True, 28), ("gate", True, 32), ("spread", False, 23), ("spread", True, 33),
        ("whole", True, 108),
    ],
)  # fmt: skip
def test_the_compiled_loops_carry_every_tensor(
    name: str, ahead: bool, carried: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled here for a GPU that need not be there: a carried name taken for a constant would be missing."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    import triton
    from triton.backends.compiler import GPUTarget

    from simpletuner.models.sana.kernels import depthwise_fused, depthwise_programs

    kernels = {"spread": depthwise_programs.spread_kernel, "whole": depthwise_fused.whole_kernel}
    kernel = kernels.get(name, depthwise_programs.gate_kernel)
    constants = {"UNIT": 16, "BLOCK": 256, "FAST": True, "AHEAD": ahead, "PAIRS": True, "BACKWARD": name == "gate"}
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    numbers = dict.fromkeys(depthwise_programs.SIZES, "i32")
    types = dict.fromkeys(kernel.arg_names, "*bf16") | numbers | dict.fromkeys(constants, "constexpr")
    types |= {"sums": "*fp32"} if name in kernels else {}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind.startswith("*")}
    source = triton.compiler.ASTSource(kernel, types, constants, aligned)
    options = {"num_warps": 4} | ({} if name == "whole" else {"maxnreg": 128})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    code = compiled.asm["ttir"]
    loops = [line.split("iter_args(")[1].split(") ->")[0] for line in code.splitlines() if "scf.for" in line]
    assert [loop.count("=") for loop in loops] == [carried], code
    assert "convert_layout" not in compiled.asm["ttgir"], "two channels in a word went through shared memory"
    assert stack_bytes(compiled.asm["cubin"], tmp_path) == 0, "registers spill"


@pytest.mark.skipif(not triton_found(), reason="triton is not installed")
def test_two_channels_in_a_word_only_where_words_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    from simpletuner.models.sana.kernels import depthwise_triton

    monkeypatch.setattr(depthwise_triton, "_has_tanh", lambda device: True)

    def loads(x: torch.Tensor, channels: int) -> tuple[bool, bool, int | None]:
        plan = depthwise_triton.Plan(registers=120)
        constants = depthwise_triton._launch(plan, [x], 2, 2, channels)[2]
        return constants["PAIRS"], constants["AHEAD"], constants.get("maxnreg")

    assert loads(torch.empty(1, 4, 32, dtype=torch.bfloat16), 16) == (True, True, 120)
    assert loads(torch.empty(129, dtype=torch.bfloat16)[1:].view(1, 4, 32), 16) == (False, False, None)
    assert loads(torch.empty(1, 4, 20, dtype=torch.bfloat16), 10) == (False, False, None)
    assert loads(torch.empty(1, 4, 32), 16) == (False, False, None)
