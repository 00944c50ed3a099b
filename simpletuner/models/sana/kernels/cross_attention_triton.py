"""The Triton kernels behind ``cross_attention.py``: two launches forward, three backward, every sum in float32.

    bias:    once a picture: the biases in float32, and where the real keys end
    forward: a program owns a block of queries of one head and walks along the keys with a running greatest score
    query:   the same shape of program for dq; for the next launch it writes the log sum and Σ dout · out of its rows
    key:     a program owns a block of keys of one head and walks along the queries for dk and dv

Keys are few and padded at the end: a key counts as real if its bias is within FAR of the greatest one of its picture,
and blocks past the last real key are left out. Inside, the bias is added, so any mask is right. Biases are counted from
the greatest: softmax does not see it, and a picture whose keys are all masked loses no digits to a sum with -10000.

There are no atomics and no autotuning: a program writes only what it alone owns. Where the blocks of keys are too few to
fill a GPU, the queries are split into parts, whose sums go to a float32 buffer [parts, B, n, 2, heads, d] that
``torch.sum`` adds up: the same bits every run. Products of 16-bit tensors have float32 sums; p and ds are rounded to the
tensors' dtype for theirs, as in PyTorch's own kernels. Every load and store is masked; a head whose width is no power of
two is padded with zeros on the chip. The start of a picture is a 64-bit offset, offsets inside one picture are checked to
fit 32 bits. Sizes are run-time numbers: what is compiled anew is a dtype and the number and width of heads.

The loop of the key kernel just fits the registers. What it needs of a query comes as pairs in one array, because an
array with fewer numbers than the program has threads would be loaded by every thread for itself, in 32 pieces; and what
is only needed after the loop is made after it, see ``_zero``. ``depthwise_programs.py`` tells what a loop may carry.

Source: Dao et al. 2022, "FlashAttention", algorithms 1 and 4, with powers of two for exponentials.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

LARGEST = 2**31 - 1
LOG2_E = tl.constexpr(1.4426950408889634)
FAR = tl.constexpr(5000.0)  # half of the -10000 of padding: a key left out has e^-5000 of the weight of a real one
LOWEST = tl.constexpr(-1e30)  # below every score, and its difference from itself is 0
ROUND = tl.constexpr(128)  # a row of biases is padded to a multiple of this, which no block of keys crosses
SIZES = ["tokens", "keys"]
WIDEST = 128
ENOUGH_PROGRAMS = 320  # of the key kernel, of which about half find only padding


class Plan(NamedTuple):
    """The shape of one program.

    Attributes:
        queries: of a block, a power of two from 16 on.
        keys: of a block, a power of two from 16 to 128.
        warps: of 32 threads.
        stages: blocks in shared memory at a time: the one at work and those on their way.
    """

    queries: int
    keys: int
    warps: int
    stages: int


FORWARD, QUERY, KEY = Plan(64, 32, 4, 3), Plan(64, 32, 4, 2), Plan(64, 64, 4, 2)
# float32, whose products are made without the matrix units; loading ahead, or fewer warps backward, would spill.
EXACT_FORWARD, EXACT_QUERY, EXACT_KEY = Plan(32, 32, 8, 1), Plan(32, 32, 16, 1), Plan(32, 32, 16, 1)


@triton.jit
def _padded(keys):
    """How many places a row of biases has."""
    return tl.cdiv(keys, ROUND) * ROUND


@triton.jit
def _inside(row, rows, D: tl.constexpr, WIDE: tl.constexpr):
    """Which values of a block [BLOCK, WIDE] there are."""
    mask = (row < rows)[:, None]
    if WIDE > D:
        mask = mask & (tl.arange(0, WIDE) < D)[None, :]
    return mask


@triton.jit
def _rows(pointer, row, rows, stride, D: tl.constexpr, WIDE: tl.constexpr):
    """Rows of one head, [BLOCK, WIDE] in their dtype, zero past the end and past D."""
    offset = row[:, None] * stride + tl.arange(0, WIDE)[None, :]
    return tl.load(pointer + offset, mask=_inside(row, rows, D, WIDE), other=0.0)


@triton.jit
def _write(pointer, value, row, rows, stride, D: tl.constexpr, WIDE: tl.constexpr):
    offset = row[:, None] * stride + tl.arange(0, WIDE)[None, :]
    tl.store(pointer + offset, value.to(pointer.dtype.element_ty), mask=_inside(row, rows, D, WIDE))


@triton.jit
def _zero(end):
    """A zero unknown to the compiler: offsets counted from it are made anew, not kept from before a loop."""
    return tl.minimum(tl.load(end, volatile=True), 0)


@triton.jit(do_not_specialize=["keys"])
def bias_kernel(bias, line, ends, keys):
    """line: the biases of a picture from the greatest down, in powers of two, -inf past the last; ends: real keys."""
    picture = tl.program_id(0).to(tl.int64)
    bias += picture * keys
    line += picture * _padded(keys)
    greatest = tl.full((ROUND,), float("-inf"), tl.float32)
    for start in tl.range(0, keys, ROUND, num_stages=1):
        key = start + tl.arange(0, ROUND)
        greatest = tl.maximum(greatest, tl.load(bias + key, mask=key < keys, other=float("-inf")).to(tl.float32))
    top = tl.max(greatest, 0)
    last = tl.zeros((ROUND,), tl.int32)
    for start in tl.range(0, keys, ROUND, num_stages=1):
        key = start + tl.arange(0, ROUND)
        below = tl.load(bias + key, mask=key < keys, other=float("-inf")).to(tl.float32) - top
        last = tl.maximum(last, tl.where((below >= -FAR) & (key < keys), key + 1, 0))
        tl.store(line + key, below * LOG2_E, mask=key < _padded(keys))
    tl.store(ends + picture, tl.max(last, 0))


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    query, key_value, line, ends, out, lse, tokens, keys, scale,
    HEADS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Output and log sums of a block of queries."""
    picture, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    stride: tl.constexpr = HEADS * D
    token = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    own = picture * tokens * stride + head * D
    q = _rows(query + own, token, tokens, stride, D, WIDE)
    key_value += picture * keys * (2 * stride) + head * D
    line += picture * _padded(keys)
    greatest = tl.full((QUERIES,), LOWEST, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    y = tl.zeros((QUERIES, WIDE), tl.float32)
    for start in tl.range(0, tl.load(ends + picture), KEYS, num_stages=STAGES):
        key = start + tl.arange(0, KEYS)
        b = tl.load(line + key, mask=key < _padded(keys), other=float("-inf"))
        k = _rows(key_value, key, keys, 2 * stride, D, WIDE)
        v = _rows(key_value + stride, key, keys, 2 * stride, D, WIDE)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E) + b[None, :]
        above = tl.maximum(greatest, tl.max(s, 1))
        p = tl.exp2(s - above[:, None])
        shrink = tl.exp2(greatest - above)
        total = total * shrink + tl.sum(p, 1)
        y = tl.dot(p.to(v.dtype), v, y * shrink[:, None], input_precision="ieee")
        greatest = above
    token += _zero(ends + picture)
    _write(out + own, y * (1.0 / total)[:, None], token, tokens, stride, D, WIDE)
    sums = (greatest + tl.log2(total)) / LOG2_E
    tl.store(lse + (picture * HEADS + head) * tokens + token, sums, mask=token < tokens)


@triton.jit(do_not_specialize=SIZES)
def query_backward_kernel(
    grad, query, key_value, line, ends, out, lse, dquery, pairs, tokens, keys, scale,
    HEADS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradient dq of a block of queries, and their pairs [B, heads, N, 2]: log2 of the sum, Σ dout · out."""
    picture, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    stride: tl.constexpr = HEADS * D
    token = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    own = picture * tokens * stride + head * D
    g = _rows(grad + own, token, tokens, stride, D, WIDE)
    y = _rows(out + own, token, tokens, stride, D, WIDE)
    along = tl.sum(g.to(tl.float32) * y.to(tl.float32), 1)
    row = (picture * HEADS + head) * tokens + token
    level = tl.load(lse + row, mask=token < tokens, other=0.0) * LOG2_E
    tl.store(pairs + 2 * row, level, mask=token < tokens)
    tl.store(pairs + 2 * row + 1, along, mask=token < tokens)
    q = _rows(query + own, token, tokens, stride, D, WIDE)
    key_value += picture * keys * (2 * stride) + head * D
    line += picture * _padded(keys)
    dq = tl.zeros((QUERIES, WIDE), tl.float32)
    for start in tl.range(0, tl.load(ends + picture), KEYS, num_stages=STAGES):
        key = start + tl.arange(0, KEYS)
        b = tl.load(line + key, mask=key < _padded(keys), other=float("-inf"))
        k = _rows(key_value, key, keys, 2 * stride, D, WIDE)
        v = _rows(key_value + stride, key, keys, 2 * stride, D, WIDE)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E) + b[None, :]
        dp = tl.dot(g, tl.trans(v), input_precision="ieee")
        ds = tl.exp2(s - level[:, None]) * (dp - along[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    token += _zero(ends + picture)
    _write(dquery + own, dq * scale, token, tokens, stride, D, WIDE)


@triton.jit(do_not_specialize=[*SIZES, "parts", "share"])
def key_backward_kernel(
    grad, query, key_value, line, ends, pairs, dkey_value, tokens, keys, scale, parts, share,
    HEADS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients dk and dv of a block of keys, summed over a part of `share` queries; zeros past the last real key."""
    picture, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    part, block = tl.program_id(0) % parts, tl.program_id(0) // parts
    stride: tl.constexpr = HEADS * D
    key = block * KEYS + tl.arange(0, KEYS)
    key_value += picture * keys * (2 * stride) + head * D
    k = _rows(key_value, key, keys, 2 * stride, D, WIDE)
    v = _rows(key_value + stride, key, keys, 2 * stride, D, WIDE)
    b = tl.load(line + picture * _padded(keys) + key, mask=key < _padded(keys), other=float("-inf"))
    query += picture * tokens * stride + head * D
    grad += picture * tokens * stride + head * D
    pairs += (picture * HEADS + head) * tokens * 2
    dk = tl.zeros((KEYS, WIDE), tl.float32)
    dv = tl.zeros((KEYS, WIDE), tl.float32)
    stop = tl.where(block * KEYS < tl.load(ends + picture), tl.minimum((part + 1) * share, tokens), 0)
    for start in tl.range(part * share, stop, QUERIES, num_stages=STAGES):
        token = start + tl.arange(0, QUERIES)
        q = _rows(query, token, tokens, stride, D, WIDE)
        g = _rows(grad, token, tokens, stride, D, WIDE)
        # Past the end q, g and the pair are 0: p is at most 1, times zero.
        place = 2 * start + tl.arange(0, 2 * QUERIES)
        pair = tl.load(pairs + place, mask=place < 2 * tokens, other=0.0)
        level, along = tl.split(pair.reshape(QUERIES, 2))
        s = tl.dot(k, tl.trans(q), input_precision="ieee") * (scale * LOG2_E) + b[:, None]
        p = tl.exp2(s - level[None, :])
        dv = tl.dot(p.to(g.dtype), g, dv, input_precision="ieee")
        dp = tl.dot(v, tl.trans(g), input_precision="ieee")
        ds = p * (dp - along[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    zero = _zero(ends + picture)
    key = (block + zero) * KEYS + tl.arange(0, KEYS)
    place = ((part + zero).to(tl.int64) * tl.num_programs(2) + picture) * keys * (2 * stride) + head * D
    _write(dkey_value + place, dk * scale, key, keys, 2 * stride, D, WIDE)
    _write(dkey_value + place + stride, dv, key, keys, 2 * stride, D, WIDE)


@functools.cache
def _fits(device: torch.device) -> bool:
    """Whether the device has the shared memory that the plans take: NVIDIA's from compute capability 8.0 on."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def takes(query: torch.Tensor, key_value: torch.Tensor) -> bool:
    """Whether the kernels do these CUDA tensors: of one dtype, heads of at most 128 channels, and none empty."""
    known = query.dtype == key_value.dtype and query.shape[3] <= WIDEST and bool(query.numel() * key_value.numel())
    return known and _fits(query.device)


def _parts(query: torch.Tensor, keys: int, plan: Plan) -> tuple[int, int]:
    """Into how many parts the key kernel splits the queries, and how many queries a part has."""
    batch, tokens, heads, _ = query.shape
    programs = triton.cdiv(keys, plan.keys) * heads * batch
    parts = min(max(1, ENOUGH_PROGRAMS // programs), triton.cdiv(tokens, plan.queries))
    share = triton.cdiv(triton.cdiv(tokens, parts), plan.queries) * plan.queries
    return triton.cdiv(tokens, share), share


def _launch(plan: Plan, query: torch.Tensor) -> tuple[float, dict[str, Any]]:
    """The scale of the scores, and the kernel's constants."""
    heads, width = query.shape[2:]
    wide = max(16, triton.next_power_of_2(width))
    constants = {"HEADS": heads, "D": width, "WIDE": wide, "QUERIES": plan.queries, "KEYS": plan.keys}
    return width**-0.5, constants | {"STAGES": plan.stages, "num_warps": plan.warps}


def _blocks(plan: Plan, query: torch.Tensor) -> tuple[int, int, int]:
    """The grid of the kernels that own queries."""
    return triton.cdiv(query.shape[1], plan.queries), query.shape[2], query.shape[0]


def _biases(bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, n] → the biases as the kernels read them [B, n rounded up] float32, and where the real keys end [B] int32."""
    batch, keys = bias.shape
    line = bias.new_empty(batch, triton.cdiv(keys, ROUND.value) * ROUND.value, dtype=torch.float32)
    ends = bias.new_empty(batch, dtype=torch.int32)
    bias_kernel[(batch,)](bias.contiguous(), line, ends, keys)
    return line, ends


def _check_size(query: torch.Tensor, key_value: torch.Tensor) -> None:
    """Raise ValueError where one picture has more values than 32-bit offsets reach."""
    largest = max(tensor[0].numel() for tensor in (query, key_value))
    if largest > LARGEST:
        raise ValueError(f"one picture has {largest} values, more than 32-bit offsets reach")


def forward(query: torch.Tensor, key_value: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``cross_attention.plain_forward``, on the device of query.

    Raises:
        ValueError: one picture has more values than 32-bit offsets reach.
    """
    _check_size(query, key_value)
    query, key_value = query.contiguous(), key_value.contiguous()
    batch, tokens, heads, _ = query.shape
    out, lse = torch.empty_like(query), query.new_empty(batch, heads, tokens, dtype=torch.float32)
    plan = EXACT_FORWARD if query.dtype == torch.float32 else FORWARD
    scale, constants = _launch(plan, query)
    sizes = (tokens, key_value.shape[1], scale)
    forward_kernel[_blocks(plan, query)](query, key_value, *_biases(bias), out, lse, *sizes, **constants)
    return out, lse


def backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key_value: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``cross_attention.plain_backward``, from what the forward pass returned."""
    _check_size(query, key_value)
    grad, query, key_value, out, lse = (x.contiguous() for x in (grad, query, key_value, out, lse))
    (batch, tokens, heads, _), keys = query.shape, key_value.shape[1]
    dquery, pairs = torch.empty_like(query), lse.new_empty(batch, heads, tokens, 2)
    biases, exact = _biases(bias), query.dtype == torch.float32
    plan = EXACT_QUERY if exact else QUERY
    scale, constants = _launch(plan, query)
    given = (grad, query, key_value, *biases)
    query_backward_kernel[_blocks(plan, query)](*given, out, lse, dquery, pairs, tokens, keys, scale, **constants)
    plan = EXACT_KEY if exact else KEY
    scale, constants = _launch(plan, query)
    parts, share = _parts(query, keys, plan)
    dtype = key_value.dtype if parts == 1 else torch.float32
    sums = key_value.new_empty(parts, *key_value.shape, dtype=dtype)
    grid = (triton.cdiv(keys, plan.keys) * parts, heads, batch)
    key_backward_kernel[grid](*given, pairs, sums, tokens, keys, scale, parts, share, **constants)
    return dquery, sums[0] if parts == 1 else sums.sum(0).to(key_value.dtype)
