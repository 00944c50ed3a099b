"""Runs Adam's kernel in Triton's interpreter on the CPU, beside its plain twin; started by test_guarded_step.py."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from simpletuner.training import adamw_fused, adamw_triton, guarded_adam

torch.cuda.is_current_stream_capturing = lambda: False


def rows_of(dtype, lengths, kahan):
    torch.manual_seed(1)
    makers = [torch.randn, torch.randn, lambda n: 0.1 * torch.randn(n), lambda n: 0.1 * torch.rand(n)]
    makers += [lambda n: 0.001 * torch.randn(n)] * kahan
    return [tuple(make(n).to(dtype) for make in makers) for n in lengths]


def control(step, good):
    taken = torch.tensor(float(step), dtype=torch.float64)
    mix = guarded_adam.plain_mix((0.9, 0.999), taken)
    return guarded_adam.control_of(mix, taken, torch.tensor(1e-2), torch.tensor(0.5), torch.tensor(good))


def launch(rows, numbers, seed):
    table = adamw_fused.Launches([len(row[0]) for row in rows], torch.device("cpu"), adamw_triton)
    adamw_triton.launch(table.table(rows), table.chunks, numbers, seed, (1e-6, 0.01), adamw_triton.kind(rows[0]))


def neighbours(found, value):
    """Each number is one of the two of its dtype around the value; returns the errors in units of that step."""
    relative = 2e-7 if found.dtype is torch.float32 else 2**-7
    step = value.abs() * relative + (2e-7 if found.dtype is torch.float32 else 1e-8)
    errors = (found.float() - value) / step
    assert errors.abs().max() <= 1, (found.dtype, errors.abs().max())
    return errors


CASES = [(torch.bfloat16, (5000, 64, 8), False), (torch.bfloat16, (13, 1, 4099), False)]
CASES += [(torch.float32, (4104, 16), False), (torch.bfloat16, (5000, 8), True), (torch.bfloat16, (13, 4099), True)]
for dtype, lengths, kahan in CASES:
    rows, old, other = (rows_of(dtype, lengths, kahan) for _ in range(3))
    launch(rows, control(3, True), 7)
    launch(other, control(3, True), 8)
    errors = []
    for row, before in zip(rows, old, strict=True):
        exact = tuple(t.float() for t in before)
        change, mean, square = guarded_adam.adam_where(exact[:4], control(3, True), 1e-6, 0.01)
        decayed = exact[0] * (1 - 1e-2 * 0.01)
        assert torch.equal(row[1], before[1]), "gradients are read only"
        # The interpreter cuts where a GPU rounds: twice the error.
        if kahan:  # together weight and rest hold the new weight to the rest's digits
            whole = decayed + exact[4] + change
            together = row[0].float() + row[4].float()
            assert ((together - whole).abs() <= 2**-7 * row[4].float().abs() + 1e-6).all()
            assert (row[4].float().abs() <= row[0].float().abs() * 2**-7 + 1e-6).all(), (
                "no rest that the weight could hold"
            )
            neighbours(row[2], mean), neighbours(row[3], square)
        else:
            pairs = zip((row[0], row[2], row[3]), (decayed + change, mean, square), strict=True)
            errors += [neighbours(found, value) for found, value in pairs]
    if dtype is torch.bfloat16 and not kahan:
        assert abs(torch.cat(errors).mean()) < 0.02, "right in the mean"
        assert any(not torch.equal(a[0], b[0]) for a, b in zip(rows, other, strict=True)), (
            "the seed decides the rounding"
        )
    kept = [tensor.clone() for row in rows for tensor in row]
    launch(rows, control(3, False), 7)
    assert all(torch.equal(a, b) for a, b in zip(kept, [t for row in rows for t in row], strict=True)), "left as it is"
print("right")
