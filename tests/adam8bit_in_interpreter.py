"""Runs the kernel of Adam with states in 8 bits in Triton's interpreter, beside its plain twin; started by test_adamw8bit.py."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl

from simpletuner.training import adamw8bit_triton as kernel
from simpletuner.training import adamw_fused, eight_bits, guarded_adam
from simpletuner.training.adamw8bit import updated

torch.cuda.is_current_stream_capturing = lambda: False
CPU, NUMBERS = torch.device("cpu"), (1e-8, 0.01)


@triton.jit
def codes_kernel(x, limits, out, length, SIGNED: tl.constexpr, BLOCK: tl.constexpr):
    at = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[None, :]
    mask = at < length
    numbers = tl.load(x + at, mask=mask, other=0.0)
    tl.store(out + at, kernel.nearest(numbers, tl.load(limits + tl.arange(0, 256)), SIGNED), mask=mask)


def every_code_is_the_nearest(signed):
    """At every limit and its neighbours, and over all decades."""
    maps = eight_bits.tables(CPU)
    limits = maps[2, 1:] if signed else maps[3, :-1]
    x = [limits, maps[0 if signed else 1], torch.tensor([0.0, 1.0, 1.0 + 2**-23, 1e-30])]
    for toward in (-2.0, 2.0):
        near = limits
        for _ in range(3):
            near = torch.nextafter(near, torch.tensor(toward))
            x.append(near)
    x.append(10 ** (-9 * torch.rand(100_000)))
    x.append(torch.rand(50_000))
    found = torch.cat(x)
    found = torch.cat([found, -found, -torch.zeros(1)]) if signed else found
    codes = torch.zeros(len(found), dtype=torch.uint8)
    codes_kernel[(-(-len(found) // 4096),)](found, maps[2 if signed else 3], codes, len(found), signed, 4096)
    assert torch.equal(codes, torch.bucketize(found, limits, right=True).to(torch.uint8)), signed


def rows_of(dtype, lengths, aligned=True):
    torch.manual_seed(1)
    rows = []
    for length in lengths:
        size = 10.0 ** torch.randint(-8, 4, (length // 256, 1))
        size[::7] = 0
        weight, grad, mean, square = (torch.randn(length // 256, 256) * factor for factor in (1, size, size, size))
        codes = [
            eight_bits.write(t.flatten(), length // 256, signed) for t, signed in ((mean, True), (square**2, False))
        ]
        pair = [t.flatten().to(dtype) for t in (weight, grad)]
        if not aligned:
            pair = [torch.cat([t[:1], t])[1:] for t in pair]
        rows.append((*pair, codes[0][0], codes[1][0], codes[0][1], codes[1][1]))
    return rows


def control(good, step=3):
    taken = torch.tensor(float(step), dtype=torch.float64)
    mix = guarded_adam.plain_mix((0.9, 0.999), taken)
    return guarded_adam.control_of(mix, taken, torch.tensor(1e-2), torch.tensor(0.5), torch.tensor(good))


def launch(rows, numbers, seed):
    table = adamw_fused.Launches([len(row[0]) for row in rows], CPU, kernel)
    kernel.launch(table.table(rows), table.chunks, numbers, seed, NUMBERS, kernel.kind(rows[0]))


every_code_is_the_nearest(True)
every_code_is_the_nearest(False)
LENGTHS = (4096, 256 * 53, 256)
for dtype, aligned in ((torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, True)):
    rows, old, other = (rows_of(dtype, LENGTHS, aligned) for _ in range(3))
    assert kernel.kind(rows[0]) == (aligned, dtype is torch.bfloat16)
    launch(rows, control(True), 7)
    launch(other, control(True), 8)
    errors = []
    for row, before in zip(rows, old, strict=True):
        assert torch.equal(row[1], before[1]), "gradients are read only"
        weight, mean, square, *scales = updated(before, control(True), NUMBERS)
        for found, wanted in zip(row[4:], scales, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
        for found, wanted in zip(row[2:4], (mean, square), strict=True):
            off = (found.int() - wanted.int()).abs()
            assert off.max() <= 1 and (off > 0).float().mean() <= 1e-3
        step = weight.abs() * (2e-7 if dtype is torch.float32 else 2**-7) + 1e-8
        errors.append((row[0].float() - weight) / step)
        assert errors[-1].abs().max() <= 1.01
    if dtype is torch.bfloat16:
        assert abs(torch.cat(errors).mean()) < 0.01, "right in the mean"
        first, second = (torch.cat([row[0] for row in some]).float() for some in (rows, other))
        differs = (first != second).float()
        assert differs.mean() > 0.2, "the seed decides the rounding"
        # No two numbers share their bits: rounding up here says nothing about rounding up there.
        up = torch.sign(torch.cat(errors))
        for shift in (1, 2, 4, 8, 256, 2048, 4096):
            assert abs((up[shift:] * up[:-shift]).mean()) < 0.04, shift
    kept = [tensor.clone() for row in rows for tensor in row]
    launch(rows, control(False), 7)
    assert all(torch.equal(a, b) for a, b in zip(kept, [t for row in rows for t in row], strict=True)), "left as it is"
print("right")
