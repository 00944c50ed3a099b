"""What only a GPU can show of the seam between two blocks: what Triton's compiler makes of it, alone and in a CUDA graph."""

from __future__ import annotations

import pytest
import torch
from seam import chain, operation

from simpletuner.models.sana.kernels import runs_in_triton

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DEVICE = "cuda"
SIZES = [(2, 35, 72), (3, 257, 65), (2, 40, 2047), (1, 70, 4096), (1, 1024, 2240), (8, 1024, 2240)]
DTYPES = [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)]
Tensors = list[torch.Tensor]


def tensors(size: tuple[int, int, int], dtype: torch.dtype, of_table: torch.dtype) -> Tensors:
    assert runs_in_triton(torch.empty(1, device=DEVICE)), "Triton is not installed: nothing here would be tested"
    table = torch.randn(size[0], 6, size[2], device=DEVICE).to(of_table)
    return [t.requires_grad_() for t in (*(torch.randn(size, device=DEVICE).to(dtype) for _ in range(2)), table)]


def results(function, given: Tensors, grads: Tensors) -> Tensors:
    outs = function(*given)
    gradients = torch.autograd.grad(outs, given, [g.to(out.dtype) for g, out in zip(grads, outs, strict=True)])
    return [*(out.detach() for out in outs), *gradients]


def errors(found: Tensors, exact: Tensors) -> list[float]:
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_outputs_and_every_gradient(size: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Against float64: float32 results to 1e-5; 16-bit ones no worse than PyTorch's operations but for one rounding.

    Both round the incoming gradients, s and their results; PyTorch's round on the way too, so before its last rounding the
    kernels' error is no larger than theirs. A rounding to nearest adds at most half of the dtype's epsilon.
    """
    given = tensors(size, *dtypes)
    grads = [torch.randn(size, device=DEVICE) for _ in range(2)]
    exact = results(chain, [t.detach().double().requires_grad_() for t in given], [g.double() for g in grads])
    found, usual = results(operation, given, grads), results(chain, given, grads)
    assert [(a.dtype, a.shape) for a in found] == [(b.dtype, b.shape) for b in usual]
    measured = errors(found, exact)
    limits = [
        1e-5 if a.dtype == torch.float32 else e + torch.finfo(a.dtype).eps / 2
        for a, e in zip(found, errors(usual, exact), strict=True)
    ]
    assert all(e <= limit for e, limit in zip(measured, limits, strict=True)), (measured, limits)


def test_the_same_bits_every_time_and_in_a_cuda_graph() -> None:
    given = tensors((2, 1024, 2240), torch.bfloat16, torch.bfloat16)
    grads = [torch.randn(2, 1024, 2240, device=DEVICE) for _ in range(2)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        once = results(operation, given, grads)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(operation, given, grads)
    for _ in range(3):
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(captured, once, strict=True))
