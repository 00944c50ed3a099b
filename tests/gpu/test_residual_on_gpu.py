"""What only a GPU can show of the norms, gates and sums of a block: what Triton's compiler makes of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from simpletuner.models.sana.kernels import residual, runs_in_triton

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DEVICE = "cuda"
# Pictures, tokens, channels; the last is the real model's size, the one before it as at a batch of one.
SIZES = [
    (2, 35, 72),
    (1, 1, 1),
    (3, 257, 65),
    (1, 513, 1152),
    (2, 40, 2047),
    (1, 70, 4096),
    (1, 1024, 2240),
    (8, 1024, 2240),
]
EPSILON = 1e-6
Tensors = list[torch.Tensor]
Operation = Callable[..., Tensors]


def tensors(size: tuple[int, int, int], dtype: torch.dtype, of_table: torch.dtype) -> Tensors:
    """Tokens, two results of layers with their biases, a table of six rows."""
    assert runs_in_triton(torch.empty(1, device=DEVICE)), "Triton is not installed: nothing here would be tested"
    batch, _, channels = size
    made = [torch.randn(size, device=DEVICE).to(dtype) for _ in range(3)]
    others = [(channels,), (channels,), (batch, 6, channels)]
    return [t.requires_grad_() for t in (*made, *(torch.randn(s, device=DEVICE).to(of_table) for s in others))]


def operations(x, y, z, bias_y, bias_z, table) -> Tensors:
    """All three, as a block has them; y and z have their biases in them."""
    modulation, gate, modulation_two, gate_two = table.split((2, 1, 2, 1), dim=1)
    x, first = residual.norm(x, modulation, EPSILON)
    x, other = residual.gated_add_twice(x, y, gate, bias_y)
    x, second = residual.add_norm(x, z, modulation_two, EPSILON, bias_z)
    return [first, other, second, residual.gated_add(x, second.to(z.dtype), gate_two)]


def chain(x, y, z, bias_y, bias_z, table) -> Tensors:
    """The same in PyTorch's operations; the biases add zero, and have their gradients."""
    shift, scale, gate, shift_two, scale_two, gate_two = table.chunk(6, dim=1)
    y, z = y + (bias_y - bias_y.detach()).to(y.dtype), z + (bias_z - bias_z.detach()).to(z.dtype)
    first = (F.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale) + shift).to(x.dtype)
    other = x + gate * y
    x = other + z
    second = F.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale_two) + shift_two
    return [first, other, second, x + gate_two * second.to(z.dtype)]


def results(operation: Operation, given: Tensors, grads: Tensors) -> Tensors:
    outs = operation(*given)
    gradients = torch.autograd.grad(outs, given, [g.to(out.dtype) for g, out in zip(grads, outs, strict=True)])
    return [*(out.detach() for out in outs), *gradients]


def errors(found: Tensors, exact: Tensors) -> list[float]:
    return [((a.double() - b).norm() / b.norm().clamp_min(1e-30)).item() for a, b in zip(found, exact, strict=True)]


def check(ours: Operation, given: Tensors) -> None:
    """Output and every gradient against float64: float32 to 1e-5, else PyTorch's error, a quarter of it and a few roundings.

    These are 8e-3 where tensors are small, so that few numbers make an error, and 1e-3 elsewhere.
    """
    grads = [torch.randn(given[0].shape, device=DEVICE) for _ in range(4)]
    exact = results(chain, [t.detach().double().requires_grad_() for t in given], [g.double() for g in grads])
    found, usual = results(ours, given, grads), results(chain, given, grads)
    assert [(a.dtype, a.shape) for a in found] == [(b.dtype, b.shape) for b in usual]
    few = 8e-3 if given[0].numel() < 1e6 else 1e-3
    limits = [1e-5 if t.dtype == torch.float32 and given[0].dtype == t.dtype else 0.0 for t in found]
    limits = [limit or 1.25 * e + few for limit, e in zip(limits, errors(usual, exact), strict=True)]
    measured = errors(found, exact)
    print("errors", [f"{e:.1e}" for e in measured], "limits", [f"{e:.1e}" for e in limits])
    assert all(e <= limit for e, limit in zip(measured, limits, strict=True)), (measured, limits)


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_outputs_and_every_gradient(size: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    if size[2] > 1:
        check(operations, tensors(size, *dtypes))
    else:  # the norm of one channel is its shift
        given = tensors(size, *dtypes)
        found = results(operations, given, [torch.ones(size, device=DEVICE)] * 4)
        assert torch.equal(found[0], given[5][:, :1].expand(size).to(found[0].dtype))
        assert all(t.isfinite().all() for t in found)


def test_strided_tokens_and_gradients() -> None:
    given = tensors((2, 70, 40), torch.float32, torch.float32)
    turned = [t.detach().transpose(0, 1).contiguous().transpose(0, 1) if t.dim() == 3 else t for t in given]
    grads = [torch.randn(2, 40, 70, device=DEVICE).transpose(1, 2) for _ in range(4)]
    found = results(operations, [t.detach().requires_grad_() for t in turned], grads)
    for a, b in zip(found, results(operations, given, [g.contiguous() for g in grads]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("frozen", [(), (3, 4, 5)])
def test_under_torch_compile_in_one_graph(frozen: tuple[int, ...]) -> None:
    """With work before and after, whose gradients come in strides that the compiler chose."""
    torch._dynamo.reset()
    given = tensors((2, 70, 96), torch.bfloat16, torch.bfloat16)
    given = [t.requires_grad_(place not in frozen) for place, t in enumerate(given)]

    def model(function: Operation, x, y, z, *rest: torch.Tensor) -> torch.Tensor:
        return torch.cat(function(x * 2, y + 1, z * 3, *rest), dim=1).transpose(1, 2).sin()

    def gradients(function: Callable[..., torch.Tensor]) -> Tensors:
        wanted = [t for t in given if t.requires_grad]
        return list(torch.autograd.grad(function(*given).float().square().sum(), wanted))

    compiled = torch.compile(lambda *t: model(operations, *t), fullgraph=True)
    for a, b in zip(gradients(compiled), gradients(lambda *t: model(operations, *t)), strict=True):
        assert (a.double() - b.double()).norm() / b.double().norm() < 2e-2
    torch._dynamo.reset()


def test_the_same_bits_every_time_and_in_a_cuda_graph() -> None:
    """Captured, replayed on other numbers, and run directly twenty times."""
    for size in ((1, 300, 2240), (4, 256, 1152)):
        given = tensors(size, torch.bfloat16, torch.bfloat16)
        grads = [torch.randn(size, device=DEVICE) for _ in range(4)]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                results(operations, given, grads)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = results(operations, given, grads)
        with torch.no_grad():
            for tensor in given:
                tensor.copy_(torch.randn_like(tensor))
        graph.replay()
        torch.cuda.synchronize()
        for _ in range(20):
            for a, b in zip(captured, results(operations, given, grads), strict=True):
                assert torch.equal(a, b)
