"""What only a GPU can show of the hand-written operations: what Triton's compiler makes of them.

Sizes that divide no tile, and the real one; every gradient against float64. In bfloat16 the yardstick is the error of the
same formula in PyTorch's own bfloat16 operations (diffusers' path through cuDNN).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from simpletuner.models.sana import joined
from simpletuner.models.sana.kernels import cross_attention, depthwise, linear_attention, runs_in_triton

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DEVICE = "cuda"
ODD = [(2, 5, 7, 24), (1, 18, 33, 72), (3, 1, 1, 1), (1, 1, 40, 65), (2, 31, 1, 130), (2, 7, 67, 80)]
ODD_ATTENTION = [(2, 35, 3, 32), (1, 257, 2, 32), (1, 1025, 1, 64), (3, 63, 5, 16)]
DTYPES = [torch.float32, torch.bfloat16]
# The real size: in float32 fewer pictures, whose programs are cut shorter.
REAL = [((2, 32, 32, 5600), torch.float32), ((8, 32, 32, 5600), torch.bfloat16)]
REAL_ATTENTION = [((2, 1024, 70, 32), torch.float32), ((8, 1024, 70, 32), torch.bfloat16)]
# Queries, heads, width, keys, real keys of each picture: 0 hides all, a negative number every third.
ODD_CROSS = [
    (35, 3, 16, 9, (9, 4, 0)), (257, 2, 32, 65, (65, 1)), (1, 1, 64, 1, (1,)), (130, 2, 72, 130, (129, 64, -1)),
    (1025, 2, 112, 300, (300, 64, 65)), (63, 5, 12, 31, (31, 7)), (70, 1, 128, 256, (200,)), (40, 2, 136, 33, (33, 5)),
]  # fmt: skip
CROSS_LENGTHS = (75, 97, 119, 140, 161, 183, 204, 225)
REAL_CROSS = [
    ((1024, 20, 112, 256, CROSS_LENGTHS[3:5]), torch.float32),
    ((1024, 20, 112, 256, CROSS_LENGTHS), torch.bfloat16),
    ((1024, 20, 112, 256, CROSS_LENGTHS[3:4]), torch.bfloat16),
]

Operation = Callable[..., torch.Tensor]


@pytest.fixture(autouse=True)
def exact_references() -> None:
    assert runs_in_triton(torch.empty(1, device=DEVICE)), "Triton is not installed: nothing here would be tested"
    print("seed", torch.seed())  # fresh numbers every run; pytest shows this line where a test fails
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def random_tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype).requires_grad_()


def depthwise_tensors(dtype: torch.dtype, batch: int, height: int, width: int, channels: int) -> list[torch.Tensor]:
    shapes = ((batch, height * width, 2 * channels), (2 * channels, 1, 3, 3), (2 * channels,))
    return [random_tensor(dtype, *shape) for shape in shapes]


def diffusers_middle(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int):
    """The operations of GLUMBConv.forward in the dtype of the tensors."""
    picture = F.silu(x).unflatten(1, (height, width)).permute(0, 3, 1, 2)
    value, gate = F.conv2d(picture, weight, bias, padding=1, groups=len(weight)).chunk(2, dim=1)
    return (value * F.silu(gate)).permute(0, 2, 3, 1).flatten(1, 2)


def plain_attention(qkv: torch.Tensor) -> torch.Tensor:
    """Two batched products in the dtype of the tensors."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    query, key = query.relu(), key.relu()
    out = (query @ (key.transpose(2, 3) @ value)) / (query @ key.sum(2, keepdim=True).transpose(2, 3) + 1e-15)
    return out.transpose(1, 2)


def results(operation: Operation, tensors: list[torch.Tensor], grad: torch.Tensor) -> list[torch.Tensor]:
    """The output and the gradient of every tensor."""
    out = operation(*tensors)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad.to(out.dtype))]


def errors(found: list[torch.Tensor], exact: list[torch.Tensor]) -> list[float]:
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]


def check(ours: Operation, ordinary: Operation, tensors: list[torch.Tensor], out_shape: tuple[int, ...]) -> None:
    """Output and gradients against float64; float32 to 1e-5, bfloat16 no worse than PyTorch's operations."""
    grad = torch.randn(out_shape, device=DEVICE).to(tensors[0].dtype)
    exact = results(ordinary, [t.detach().double().requires_grad_() for t in tensors], grad.double())
    found = results(ours, tensors, grad)
    assert [a.dtype for a in found] == [tensors[0].dtype, *(t.dtype for t in tensors)]
    assert [a.shape for a in found] == [b.shape for b in exact]
    if tensors[0].dtype == torch.float32:
        limits = [1e-5] * len(found)
    else:
        few = 8e-3 if grad.numel() < 1e6 else 1e-3  # two roundings of 2**-8 may fall together where numbers are few
        limits = [1.25 * e + few for e in errors(results(ordinary, tensors, grad), exact)]
    measured = errors(found, exact)
    print("errors", [f"{e:.1e}" for e in measured], "limits", [f"{e:.1e}" for e in limits])
    assert all(e <= limit for e, limit in zip(measured, limits, strict=True)), (measured, limits)


@pytest.mark.parametrize(("size", "dtype"), [*itertools.product(ODD, DTYPES), *REAL])
def test_depthwise_output_and_every_gradient(size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """With a bias inside x, whose gradient the operation makes too."""
    batch, height, width, channels = size

    def ours(inner: torch.Tensor, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return depthwise.gated_depthwise(x + inner.detach(), *others, height, width, inner)

    def ordinary(inner: torch.Tensor, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return diffusers_middle(x + inner, *others, height, width)

    tensors = [random_tensor(dtype, 2 * channels), *depthwise_tensors(dtype, *size)]
    check(ours, ordinary, tensors, (batch, height * width, channels))


@pytest.mark.parametrize("size", [(2, 7, 67, 80), (1, 13, 9, 48), (3, 1, 1, 16), (1, 4, 200, 32), (8, 32, 32, 5600)])
def test_depthwise_backward_in_one_launch(size: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    from simpletuner.models.sana.kernels import depthwise_triton

    monkeypatch.setattr(depthwise_triton, "IN_ONE", True)
    test_depthwise_output_and_every_gradient(size, torch.bfloat16)
    x, weight, bias = (t.detach() for t in depthwise_tensors(torch.bfloat16, *size))
    grad = torch.randn(size[0], size[1] * size[2], size[3], device=DEVICE).bfloat16()
    found = [depthwise.gated_depthwise_backward(grad, x, weight, bias, *size[1:3]) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    monkeypatch.setattr(depthwise_triton, "IN_ONE", False)
    in_two = depthwise.gated_depthwise_backward(grad, x, weight, bias, *size[1:3])
    for a, b in zip(found[0], in_two, strict=True):
        assert (a.double() - b.double()).norm() / b.double().norm() < 1e-2


@pytest.mark.parametrize("begin", [0, 1])
def test_depthwise_of_tensors_that_begin_between_two_words(begin: int) -> None:
    """Two 16-bit channels are read as one word only where both tensors allow it; the rest is another way of loading."""
    x, weight, bias = (t.detach() for t in depthwise_tensors(torch.bfloat16, 2, 6, 9, 48))
    grad = torch.randn(2, 54, 48, device=DEVICE).bfloat16()
    wanted = depthwise.plain_backward(grad.double(), x.double(), weight.double(), bias.double(), 6, 9)
    apart = [torch.cat([t.new_empty(1), t.flatten()])[1:].view(t.shape) for t in (grad, x)]
    given = (grad, apart[1]) if begin else (apart[0], x)
    for found, true in zip(depthwise.gated_depthwise_backward(*given, weight, bias, 6, 9), wanted, strict=True):
        assert (found.double() - true).norm() / true.norm() < 1e-2


@pytest.mark.parametrize("place", range(9))
def test_each_tap_of_the_weight_has_its_own_gradient(place: int) -> None:
    """The prototype's fault left three taps at zero: one tap at a time, so that no sum over taps can hide it."""
    x, weight, bias = depthwise_tensors(torch.float32, 2, 9, 11, 70)
    found = results(
        lambda *t: depthwise.gated_depthwise(*t, 9, 11), [x, weight, bias], torch.ones(2, 99, 70).to(DEVICE)
    )
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    wanted = results(lambda *t: diffusers_middle(*t, 9, 11), exact, torch.ones(2, 99, 70).to(DEVICE))
    tap, true = found[2].flatten(1)[:, place].double(), wanted[2].flatten(1)[:, place]
    assert (tap - true).norm() / true.norm() < 1e-5


@pytest.mark.parametrize(("size", "dtype"), [*itertools.product(ODD_ATTENTION, DTYPES), *REAL_ATTENTION])
def test_linear_attention_output_and_gradient(size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    batch, tokens, heads, width = size
    qkv = random_tensor(dtype, batch, tokens, 3, heads, width)
    check(linear_attention.linear_attention, plain_attention, [qkv], (batch, tokens, heads, width))


def cross_tensors(
    dtype: torch.dtype, tokens: int, heads: int, width: int, keys: int, lengths: tuple[int, ...]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """[query, key and value], bias."""
    bias = torch.zeros(len(lengths), keys, device=DEVICE, dtype=dtype)
    for row, length in zip(bias, lengths, strict=True):
        (row[length:] if length >= 0 else row[1::3]).fill_(-10000)
    query = random_tensor(dtype, len(lengths), tokens, heads, width)
    return [query, random_tensor(dtype, len(lengths), keys, 2, heads, width)], bias


def masked_attention(query: torch.Tensor, key_value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """As diffusers does."""
    query, key, value = (part.transpose(1, 2) for part in (query, *key_value.unbind(2)))
    return F.scaled_dot_product_attention(query, key, value, bias[:, None, None].to(query.dtype)).transpose(1, 2)


@pytest.mark.parametrize(
    ("size", "dtype"), [*itertools.product(ODD_CROSS, [*DTYPES, torch.float16]), *REAL_CROSS], ids=str
)
def test_cross_attention_output_and_gradients(size: tuple, dtype: torch.dtype) -> None:
    """The last odd size is wider than the kernels take: PyTorch's own attention does it."""
    tensors, bias = cross_tensors(dtype, *size)

    def ours(*given: torch.Tensor) -> torch.Tensor:
        return cross_attention.cross_attention(*given, bias)

    def ordinary(*given: torch.Tensor) -> torch.Tensor:
        return masked_attention(*given, bias)

    if size[3] > 1:
        check(ours, ordinary, tensors, (len(size[4]), *size[:3]))
    else:  # one key's weight is 1, whatever query and key
        found = results(ours, tensors, torch.ones_like(tensors[0]))
        assert torch.equal(found[0], tensors[1][:, :, 1].expand_as(found[0]))
        assert found[1].abs().max() < 1e-3


def test_cross_attention_gives_the_same_bits_and_runs_in_a_cuda_graph() -> None:
    """Captured, replayed on other numbers and another mask; both with the queries in parts (B = 1) and without."""
    for lengths in ((150,), CROSS_LENGTHS):
        tensors, bias = cross_tensors(torch.bfloat16, 1000, 20, 112, 250, lengths)
        grad = torch.randn(len(lengths), 1000, 20, 112, device=DEVICE).bfloat16()
        operation = lambda *t, bias=bias: cross_attention.cross_attention(*t, bias)  # noqa: E731
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                results(operation, tensors, grad)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = results(operation, tensors, grad)
        with torch.no_grad():
            bias.copy_(torch.where(torch.arange(250, device=DEVICE) < 201, 0.0, -10000.0).expand_as(bias))
            for tensor in tensors:
                tensor.copy_(torch.randn_like(tensor))
        graph.replay()
        torch.cuda.synchronize()
        for _ in range(20):
            for a, b in zip(captured, results(operation, tensors, grad), strict=True):
                assert torch.equal(a, b)


def test_cross_attention_under_torch_compile_for_texts_of_any_length() -> None:
    """Strides of the compiler's choice; another length compiles nothing anew after the second."""
    torch._dynamo.reset()

    def model(query: torch.Tensor, key_value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return (cross_attention.cross_attention(query * 2, key_value + 1, bias) * 3).transpose(1, 2)

    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for keys in (77, 120, 33):
        tensors, bias = cross_tensors(torch.bfloat16, 100, 4, 112, keys, (keys, 30))
        grad = torch.randn(2, 4, 100, 112, device=DEVICE).bfloat16()
        wide = [t.detach().double().requires_grad_() for t in tensors]
        exact = results(lambda *t, bias=bias: model(*t, bias.double()), wide, grad)
        limits = [1.25 * e + 1e-3 for e in errors(results(lambda *t, b=bias: model(*t, b), tensors, grad), exact)]
        measured = errors(results(lambda *t, b=bias: compiled(*t, b), tensors, grad), exact)
        assert all(e <= limit for e, limit in zip(measured, limits, strict=True)), (measured, limits)
    torch._dynamo.reset()


def test_twenty_runs_give_the_same_bits() -> None:
    tensors = depthwise_tensors(torch.bfloat16, 2, 32, 32, 560)
    qkv = random_tensor(torch.bfloat16, 2, 1024, 3, 10, 32)
    grad, grad_attention = torch.randn(2, 1024, 560, device=DEVICE), torch.randn(2, 1024, 10, 32, device=DEVICE)

    def once() -> list[torch.Tensor]:
        first = results(lambda *t: depthwise.gated_depthwise(*t, 32, 32), tensors, grad)
        return first + results(linear_attention.linear_attention, [qkv], grad_attention)

    reference = once()
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(once(), reference, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_tokens_and_gradients(dtype: torch.dtype) -> None:
    """Gradients and tokens as a transposed view give the bits of their contiguous copies."""
    x, weight, bias = depthwise_tensors(dtype, 2, 6, 7, 40)
    strided = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    grad = torch.randn(2, 40, 42, device=DEVICE).to(dtype).transpose(1, 2)
    assert not strided.is_contiguous() and not grad.is_contiguous()
    operation = lambda *t: depthwise.gated_depthwise(*t, 6, 7)  # noqa: E731
    found = results(operation, [strided, weight, bias], grad)
    for a, b in zip(found, results(operation, [x, weight, bias], grad.contiguous()), strict=True):
        assert torch.equal(a, b)
    qkv = random_tensor(dtype, 2, 70, 3, 3, 32)
    grad = torch.randn(2, 3, 32, 70, device=DEVICE).to(dtype).permute(0, 3, 1, 2)
    found = results(linear_attention.linear_attention, [qkv], grad)
    for a, b in zip(found, results(linear_attention.linear_attention, [qkv], grad.contiguous()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_under_torch_compile(dtype: torch.dtype) -> None:
    """Inside a compiled function with work before and after, whose gradients come in strides the compiler chose."""
    torch._dynamo.reset()
    tensors = [*depthwise_tensors(dtype, 2, 8, 8, 96), random_tensor(dtype, 2, 64, 3, 3, 32)]

    def both(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, qkv: torch.Tensor) -> torch.Tensor:
        middle = depthwise.gated_depthwise(x + 1, weight, bias, 8, 8)
        return (middle * linear_attention.linear_attention(qkv + 1).flatten(2)).transpose(1, 2)

    grad = torch.randn(2, 96, 64, device=DEVICE).to(dtype)
    exact = results(both, [t.detach().double().requires_grad_() for t in tensors], grad.double())
    limits = [1.25 * e + 1e-3 for e in errors(results(both, tensors, grad), exact)]
    measured = errors(results(torch.compile(both, fullgraph=True), tensors, grad), exact)
    assert all(e <= limit for e, limit in zip(measured, limits, strict=True)), (measured, limits)
    torch._dynamo.reset()


def test_in_a_cuda_graph() -> None:
    """Captured and replayed on other numbers: as run directly."""
    tensors = depthwise_tensors(torch.bfloat16, 1, 8, 8, 96)
    grad = torch.randn(1, 64, 96, device=DEVICE).bfloat16()
    operation = lambda *t: depthwise.gated_depthwise(*t, 8, 8)  # noqa: E731
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            results(operation, tensors, grad)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(operation, tensors, grad)
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(torch.randn_like(tensor))
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, results(operation, tensors, grad), strict=True):
        assert torch.equal(a, b)


def test_weights_that_lie_together_compiled_and_in_a_cuda_graph() -> None:
    """Captured, replayed after the weights changed in place: as the layers one after the other."""
    torch._dynamo.reset()
    weights = [torch.nn.Parameter(torch.randn(64, 48, device=DEVICE).bfloat16()) for _ in range(3)]
    assert joined.lay_together(weights)
    tokens, grad = random_tensor(torch.bfloat16, 2, 40, 48), torch.randn(2, 40, 192, device=DEVICE).bfloat16()
    compiled = torch.compile(lambda *t: joined.joined_linear(t[0] * 2, t[1:], []), fullgraph=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            results(compiled, [tokens, *weights], grad)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(compiled, [tokens, *weights], grad)
    with torch.no_grad():
        for weight in weights:
            weight.copy_(torch.randn_like(weight))
    graph.replay()
    torch.cuda.synchronize()
    wide = [t.detach().double().requires_grad_() for t in (tokens, *weights)]
    exact = results(lambda *t: torch.cat([F.linear(t[0] * 2, w) for w in t[1:]], -1), wide, grad.double())
    assert max(errors(captured, exact)) < 1e-2 and joined.lie_together(weights)
    torch._dynamo.reset()
