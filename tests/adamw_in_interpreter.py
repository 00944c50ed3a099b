"""Runs the AdamW kernel in Triton's interpreter on the CPU, beside its plain twin; started by test_guarded_step.py."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from simpletuner.training import adamw_bf16, adamw_fused, adamw_triton

torch.cuda.is_current_stream_capturing = lambda: False
SETTINGS = {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}
NUMBERS = (0.9, 0.999, 1e-6, 0.01)


def rows_of(dtype, lengths):
    torch.manual_seed(1)
    makers = (torch.randn, torch.randn, lambda n: 0.1 * torch.randn(n), lambda n: 0.1 * torch.rand(n))
    return [tuple(make(n).to(dtype) for make in makers) for n in lengths]


def control(step, good):
    taken = torch.tensor(float(step), dtype=torch.float64)
    return adamw_bf16.control_of(SETTINGS, taken, torch.tensor(1e-2), torch.tensor(0.5), torch.tensor(good))


def launch(rows, numbers, seed):
    table = adamw_fused.Launches([len(row[0]) for row in rows], torch.device("cpu"))
    adamw_triton.launch(table.table(rows), table.chunks, numbers, seed, NUMBERS, adamw_triton.kind(rows[0]))


for dtype, lengths in ((torch.bfloat16, (5000, 64, 8)), (torch.bfloat16, (13, 1, 4099)), (torch.float32, (4104, 16))):
    rows, old, other = (rows_of(dtype, lengths) for _ in range(3))
    launch(rows, control(3, True), 7)
    launch(other, control(3, True), 8)
    errors = []
    for row, before in zip(rows, old, strict=True):
        wanted = adamw_bf16.adamw_where(tuple(t.float() for t in before), control(3, True), SETTINGS)
        assert torch.equal(row[1], before[1]), "gradients are read only"
        for found, value in zip((row[0], row[2], row[3]), wanted, strict=True):
            step = value.abs() * 2**-7 + 1e-8 if dtype is torch.bfloat16 else 2e-7 * (1 + value.abs())
            off = (found.float() - value).abs() > step
            assert not off.any(), (dtype, lengths, found.float()[off], value[off])
            errors.append((found.float() - value) / step)
    if dtype is torch.bfloat16:
        assert abs(torch.cat(errors).mean()) < 0.02, "right in the mean"
        assert any(not torch.equal(a[0], b[0]) for a, b in zip(rows, other, strict=True)), (
            "the seed decides the rounding"
        )
    kept = [tensor.clone() for row in rows for tensor in row]
    launch(rows, control(3, False), 7)
    assert all(torch.equal(a, b) for a, b in zip(kept, [t for row in rows for t in row], strict=True)), "left as it is"
print("right")
