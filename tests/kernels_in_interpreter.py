"""Runs the Triton kernels in Triton's interpreter on the CPU; started by test_kernels.py, prints one JSON object.

The interpreter knows no inline assembly, so in 16-bit dtypes the hardware's tanh is replaced by one from exponentials.
Beside the errors against float64 it looks for what a race would need: programs run in a shuffled order must give the
same bits, and no address may be written by two programs, or twice by one, and none may be left out.
"""

import json
import os
import random

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from simpletuner.models.sana.kernels import (
    cross_attention,
    cross_attention_triton,
    depthwise,
    depthwise_programs,
    depthwise_triton,
    gated_norm,
    gated_norm_triton,
    linear_attention,
    linear_attention_triton,
    residual,
    residual_triton,
)

builder = interpreter.interpreter_builder
written: list[np.ndarray] = []
order: random.Random | None = None
first = {
    "store": type(builder).create_masked_store,
    "index": type(builder).set_grid_idx,
    "dot": type(builder).create_dot,
    "patch": interpreter._patch_lang_tensor,
    "language": interpreter._patch_lang,
    "launch": interpreter.GridExecutor.__call__,
}
patched: set[object] = set()


def counting_store(self, pointers, value, mask, *rest):
    written.append(np.asarray(pointers.data)[np.asarray(mask.data).astype(bool)].ravel().copy())
    return first["store"](self, pointers, value, mask, *rest)


def shuffled_index(self, x, y, z):
    """Give program (x, y, z) another one's place: every place is taken once, in another order."""
    if order is not None:
        sides = self.grid_dim
        places = [(i, j, k) for i in range(sides[0]) for j in range(sides[1]) for k in range(sides[2])]
        order.seed(7)
        order.shuffle(places)
        x, y, z = places[(x * sides[1] + y) * sides[2] + z]
    first["index"](self, x, y, z)


def patch_tensors(tensor, *rest):
    """As the interpreter does, but with bounds of loops that numpy 2.4 takes: they are arrays of one number."""
    first["patch"](tensor, *rest)
    tensor.__index__ = lambda self: self.handle.data.item()


def launched(self, *arguments, **named):
    patched.clear()
    return first["launch"](self, *arguments, **named)


def patch_once(function):
    """The interpreter looks through the whole language at each call of a function in a kernel; once a launch will do."""
    if function in patched:
        return None
    patched.add(function)
    return first["language"](function)


def wide(handle):
    """A bfloat16 factor in float32: the interpreter keeps bfloat16 as integers, and would multiply these."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    data = (handle.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return interpreter.TensorHandle(data, tl.float32)


def dot(self, a, b, *rest):
    return first["dot"](self, wide(a), wide(b), *rest)


interpreter._patch_lang_tensor = patch_tensors
interpreter._patch_lang = patch_once
interpreter.GridExecutor.__call__ = launched
type(builder).create_dot = dot
type(builder).create_masked_store = counting_store
type(builder).set_grid_idx = shuffled_index


@triton.jit
def tanh(x):
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@triton.jit
def pair(low, high, TYPE: tl.constexpr):
    low = low.to(TYPE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return low | (high.to(TYPE).to(tl.int16, bitcast=True).to(tl.int32) << 16)


def error(ours, exact):
    return ((ours.double() - exact.double()).norm() / exact.double().norm()).item()


def twice(function, *arguments):
    """The results, whether a shuffled order gives the same bits, and how often an address was written twice."""
    global order
    written.clear()
    results = function(*arguments)
    results = results if isinstance(results, tuple) else (results,)
    kernels = np.concatenate(written)
    order = random.Random(7)
    again = function(*arguments)
    order = None
    again = again if isinstance(again, tuple) else (again,)
    same = all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
    return results, same, len(kernels) - len(np.unique(kernels))


def random_tensor(dtype, *shape):
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def depthwise_case(dtype, batch, height, width, channels):
    x = random_tensor(dtype, batch, height * width, 2 * channels)
    weight, bias = random_tensor(dtype, 2 * channels, 1, 3, 3), random_tensor(dtype, 2 * channels)
    grad = random_tensor(dtype, batch, channels, height * width).transpose(1, 2)  # not contiguous
    size = (height, width)
    out, same, doubled = twice(depthwise_triton.forward, x, weight, bias, *size)
    gradients, same_too, doubled_too = twice(depthwise_triton.backward, grad, x, weight, bias, *size)
    exact = [t.double() for t in (grad, x, weight, bias)]
    wanted = [depthwise.plain_forward(*exact[1:], *size), *depthwise.plain_backward(*exact, *size)]
    errors = [error(a, b) for a, b in zip((*out, *gradients), wanted, strict=True)]
    return {"errors": errors, "same": same and same_too, "doubled": doubled + doubled_too}


def attention_case(dtype, batch, tokens, heads, width):
    qkv, grad = random_tensor(dtype, batch, tokens, 3, heads, width), random_tensor(dtype, batch, tokens, heads, width)
    (out, state), same, doubled = twice(linear_attention_triton.forward, qkv)
    (gradient,), same_too, doubled_too = twice(linear_attention_triton.backward, grad, qkv, state)
    wanted, exact_state = linear_attention.plain_forward(qkv.double())
    wanted_gradient = linear_attention.plain_backward(grad.double(), qkv.double(), exact_state)
    errors = [error(out, wanted), error(state, exact_state)]
    errors += [error(gradient[:, :, i], wanted_gradient[:, :, i]) for i in range(3)]
    return {"errors": errors, "same": same and same_too, "doubled": doubled + doubled_too}


def cross_case(dtype, tokens, heads, width, lengths, keys):
    """Padding as -10000 past each length; length 0 is a picture whose keys are all masked, -1 one with holes."""
    batch = len(lengths)
    query, grad = (random_tensor(dtype, batch, tokens, heads, width) for _ in range(2))
    grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
    key_value = random_tensor(dtype, batch, keys, 2, heads, width)
    bias = torch.zeros(batch, keys, dtype=dtype)
    for row, length in zip(bias, lengths, strict=True):
        (row[length:] if length >= 0 else row[1::3]).fill_(-10000)
    given = (query, key_value, bias)
    (out, lse), same, doubled = twice(cross_attention_triton.forward, *given)
    (dquery, dkey_value), same_too, doubled_too = twice(cross_attention_triton.backward, grad, *given, out, lse)
    exact = [t.double() for t in given]
    wanted, sums = cross_attention.plain_forward(*exact)
    wanted_gradients = cross_attention.plain_backward(grad.double(), *exact)
    errors = [
        error(out, wanted),
        error(lse.exp2(), sums.exp2()),
        error(dkey_value[:, :, 1], wanted_gradients[1][:, :, 1]),
    ]
    if keys > 1:  # one key's weight is 1 whatever query and key: their gradients are 0
        errors += [error(dquery, wanted_gradients[0]), error(dkey_value[:, :, 0], wanted_gradients[1][:, :, 0])]
    return {"errors": errors, "same": same and same_too, "doubled": doubled + doubled_too}


def in_a_table(dtype, batch, rows, channels):
    """Rows of a table of six a picture, as the block has them."""
    return random_tensor(dtype, batch, 6, channels)[:, 1 : 1 + rows]


def gated_case(dtypes, batch, tokens, channels):
    """`dtypes` of tokens and table; with two readers and all sums, with one and those of the gate, and with none."""
    dtype, of_table = dtypes
    x, y, grad = (random_tensor(dtype, batch, tokens, channels) for _ in range(3))
    other = random_tensor(dtype, batch, channels, tokens).transpose(1, 2)  # not contiguous
    gate, bias = in_a_table(of_table, batch, 1, channels), random_tensor(of_table, channels)
    exact = [t.double() for t in (x, y, gate, bias, grad, other)]
    (out,), same, doubled = twice(residual_triton.gated, x, y, gate)
    errors = [error(out, residual.plain_gated(*exact[:3]))]
    for given, true in (
        ((grad, other, y, gate, bias), (*exact[4:], *exact[1:4])),
        ((grad, None, y, gate, None), (exact[4], None, *exact[1:3], None)),
        ((grad, None, None, gate, None), (exact[4], None, None, exact[2], None)),
    ):
        found, same_too, doubled_too = twice(residual_triton.gated_backward, *given)
        wanted = residual.plain_gated_backward(*true)
        assert [t.shape for t in found] == [t.shape for t in wanted]
        errors += [error(a, b) for a, b in zip(found, wanted, strict=True) if b.numel()]
        same, doubled = same and same_too, doubled + doubled_too
    return {"errors": errors, "same": same, "doubled": doubled}


def norm_case(dtypes, batch, tokens, channels):
    """The same with and without a second summand. The gradients are of the stored s and of exact statistics."""
    dtype, of_table = dtypes
    x, y, ds, dn = (random_tensor(dtype, batch, tokens, channels) for _ in range(4))
    modulation, bias = in_a_table(of_table, batch, 2, channels), random_tensor(of_table, channels)
    errors, same, doubled = [], True, 0
    for second, its_bias, summed in ((y, bias, True), (None, None, True), (None, None, False), (y, bias, False)):
        found, same_too, doubled_too = twice(residual_triton.norm, x, second, modulation, 1e-6)
        s = x if second is None else found[0]
        wanted = residual.plain_norm(s.double(), None, modulation.double(), 1e-6)
        errors += [error(found[1], wanted[1]), error(found[2], wanted[2])]
        if second is not None:
            errors.append(error(s, x.double() + y.double()))
        grads = (ds.to(s.dtype), dn.to(found[1].dtype))
        given = (grads, s, found[2], modulation, its_bias, summed)
        gradients, also_same, also_doubled = twice(residual_triton.norm_backward, *given)
        exact = (tuple(g.double() for g in grads), s.double(), wanted[2], modulation.double())
        true = residual.plain_norm_backward(*exact, None if its_bias is None else bias.double(), summed)
        assert [t.shape for t in gradients] == [t.shape for t in true]
        errors += [error(a, b) for a, b in zip(gradients, true, strict=True) if b.numel()]
        same, doubled = same and same_too and also_same, doubled + doubled_too + also_doubled
    return {"errors": errors, "same": same, "doubled": doubled}


def seam_case(dtypes, batch, tokens, channels):
    """Gated sum and norm in one, with all sums and with none. The gradients are of the stored s and of exact statistics."""
    dtype, of_table = dtypes
    x, y, ds, dn = (random_tensor(dtype, batch, tokens, channels) for _ in range(4))
    y = y.transpose(0, 1).contiguous().transpose(0, 1)
    gate, modulation = in_a_table(of_table, batch, 1, channels), in_a_table(of_table, batch, 2, channels)
    (s, n, statistics), same, doubled = twice(gated_norm_triton.forward, x, y, gate, modulation, 1e-6)
    true = gated_norm.plain_forward(*(t.double() for t in (x, y, gate, modulation)), 1e-6)
    wanted = gated_norm.plain_forward(s.double(), *(t.double() for t in (y, 0 * gate, modulation)), 1e-6)
    errors = [error(s, true[0]), error(n, wanted[1]), error(statistics, wanted[2])]
    for factor in (y, None):
        grads = (ds.to(s.dtype), dn.to(n.dtype))
        found, same_too, doubled_too = twice(
            gated_norm_triton.backward, grads, (s, statistics), factor, gate, modulation
        )
        exact = tuple(g.double() for g in grads), (s.double(), wanted[2]), None if factor is None else y.double()
        wanted_too = gated_norm.plain_backward(*exact, gate.double(), modulation.double())
        assert [t.shape for t in found] == [t.shape for t in wanted_too]
        errors += [error(a, b) for a, b in zip(found, wanted_too, strict=True) if b.numel()]
        same, doubled = same and same_too, doubled + doubled_too
    return {"errors": errors, "same": same, "doubled": doubled}


def main():
    torch.manual_seed(int(os.environ.get("SEED", "0")))
    torch.utils.deterministic.fill_uninitialized_memory = True  # an element left out shows as NaN
    torch.use_deterministic_algorithms(True)
    depthwise_programs._tanh, depthwise_triton._has_tanh = tanh, lambda device: True
    depthwise_programs._pair = pair
    linear_attention_triton.BLOCK, linear_attention_triton.RUN = 16, 2
    results = {}
    for dtype, case, ahead in (
        (torch.float32, (2, 5, 5, 12), True),
        (torch.float32, (1, 1, 3, 20), True),
        (torch.bfloat16, (1, 6, 1, 3), True),
        (torch.float16, (1, 5, 6, 16), True),
        (torch.float16, (1, 1, 1, 16), False),
        (torch.bfloat16, (1, 2, 6, 16), True),
    ):
        plan = depthwise_triton.Plan(channels=16, columns=4, ahead=ahead)
        depthwise_triton.FORWARD = depthwise_triton.GATE = depthwise_triton.SPREAD = plan
        results[f"depthwise {case} ahead {ahead} {dtype}"] = depthwise_case(dtype, *case)
    depthwise_triton.IN_ONE = True
    for dtype, case in (
        (torch.float16, (1, 5, 6, 16)),
        (torch.bfloat16, (1, 1, 1, 16)),
    ):
        depthwise_triton.WHOLE = plan
        results[f"depthwise in one {case} {dtype}"] = depthwise_case(dtype, *case)
    for dtype, case in (
        (torch.float32, (2, 35, 3, 32)),
        (torch.bfloat16, (1, 65, 2, 32)),
        (torch.bfloat16, (1, 3, 1, 16)),
    ):
        results[f"attention {case} {dtype}"] = attention_case(dtype, *case)  # one token: gradient of q and k is 0
    plan = cross_attention_triton.Plan(queries=16, keys=16, warps=4, stages=1)
    cross_attention_triton.FORWARD = cross_attention_triton.QUERY = plan._replace(keys=32)
    cross_attention_triton.KEY = plan._replace(queries=32)
    for dtype, case in (
        (torch.float32, (37, 2, 112, (9, 20, 0, -1), 37)),
        (torch.float32, (16, 1, 16, (1,), 1)),
        (torch.bfloat16, (35, 2, 24, (150, 3), 150)),
        (torch.float16, (5, 3, 12, (7, 0), 7)),
    ):
        results[f"cross {case} {dtype}"] = cross_case(dtype, *case)
    for name in ("NORM", "NORM_BACKWARD", "GATE", "GATE_BACKWARD"):
        setattr(residual_triton, name, residual_triton.Plan(warps=4, programs=8, fewest=2))
    gated_norm_triton.FORWARD = gated_norm_triton.BACKWARD = residual_triton.NORM
    residual_triton.GATE_COLUMNS, residual_triton.FINISH_ROWS, residual_triton.FINISH_COLUMNS = 8, 4, 16
    half, whole = torch.bfloat16, torch.float32
    for dtypes, case in (
        ((whole, whole), (2, 7, 35)),
        ((whole, whole), (1, 1, 16)),
        ((half, half), (3, 5, 12)),
        ((half, whole), (2, 4, 9)),
        ((torch.float16, torch.float16), (1, 6, 33)),
    ):
        results[f"gated {case} {dtypes[1]}, tokens {dtypes[0]}"] = gated_case(dtypes, *case)
        results[f"norm {case} {dtypes[1]}, tokens {dtypes[0]}"] = norm_case(dtypes, *case)
        results[f"seam {case} {dtypes[1]}, tokens {dtypes[0]}"] = seam_case(dtypes, *case)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
