import pytest
import torch

from simpletuner.errors import NonFiniteError
from simpletuner.training.ema import Ema, effective_decay
from simpletuner.training.guard import PATIENCE, Guard
from simpletuner.training.precision import choose


def test_decay_warms_up_as_diffusers() -> None:
    from diffusers.training_utils import EMAModel

    reference = EMAModel([torch.nn.Parameter(torch.zeros(1))], decay=0.995)
    for updates in range(0, 3000, 7):
        assert effective_decay(0.995, updates) == pytest.approx(reference.get_decay(updates + 1))


def test_ema_follows_the_formula_in_float32_over_bf16_weights() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    ema = Ema([weight], 0.9)
    expected = torch.zeros(4)
    for step in range(1, 40):
        weight.data.fill_(step / 7)
        ema.update(step)
        decay = effective_decay(0.9, step - 1)
        expected = decay * expected + (1 - decay) * weight.detach().float()
    torch.testing.assert_close(ema.shadow[0], expected)
    assert ema.shadow[0].dtype == torch.float32


def test_the_live_weights_come_back_even_after_an_error() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    ema = Ema([weight], 0.9)
    weight.data.fill_(5.0)
    with pytest.raises(RuntimeError), ema.applied():
        assert weight.tolist() == [1.0] * 3
        raise RuntimeError
    assert weight.tolist() == [5.0] * 3


def test_an_interval_skips_updates() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    ema = Ema([weight], 0.9, interval=3)
    for step in range(1, 7):
        ema.update(step)
    assert ema.updates == 2


def test_the_host_waits_for_an_average_that_lies_on_the_cpu_alone() -> None:
    ema = Ema([torch.nn.Parameter(torch.ones(1))], 0.9, interval=3, warmup_steps=1)
    assert not any(map(ema.waits, range(1, 7)))
    ema._parameters = [torch.nn.Parameter(torch.ones(1, device="meta"))]  # stands for a GPU
    assert [step for step in range(1, 7) if ema.waits(step)] == [1, 3, 6]


def test_ten_skipped_steps_in_a_row_stop_the_run() -> None:
    guard = Guard()
    for step in range(PATIENCE - 1):
        assert "a.png" in guard.skipped(step, "loss", ["a.png", "a.png"])
    guard.good()
    for step in range(PATIENCE - 1):
        guard.skipped(step, "loss", ["a.png"])
    with pytest.raises(NonFiniteError, match=r"b\.png"):
        guard.skipped(99, "gradient", ["b.png"])


def test_precision_table() -> None:
    bf16 = choose("bf16", low_precision_safe=True)
    assert (bf16.weights, bf16.autocast) == (torch.bfloat16, None)
    master = choose("bf16", low_precision_safe=False)
    assert (master.weights, master.autocast, master.cache) == (torch.float32, torch.bfloat16, torch.bfloat16)
    assert choose("no", True).cache == torch.float32
    assert choose("fp16", True).scale_gradients


def test_until_the_end_of_warm_up_the_average_is_a_copy() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    ema, plain = Ema([weight], 0.9, interval=2, warmup_steps=3), Ema([weight], 0.9)
    for step in range(1, 4):
        weight.data.fill_(float(step))
        ema.update(step)
        assert ema.shadow[0].tolist() == [step, step] and ema.updates == 0
    for step in range(4, 20):  # from there on as if it began now
        weight.data.fill_(float(step))
        ema.update(step)
        if step % 2 == 0:
            plain.update(step)
    assert torch.equal(ema.shadow[0], plain.shadow[0]) and ema.updates == plain.updates == 8


def test_the_average_is_the_same_however_it_is_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(batch: int) -> list[torch.Tensor]:
        monkeypatch.setattr("simpletuner.training.ema.BATCH", batch)
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(n)) for n in (3, 50, 1, 7)]
        ema = Ema(weights, 0.9)
        for step in range(1, 6):
            for weight in weights:
                weight.data.add_(torch.randn_like(weight))
            ema.update(step)
        return ema.shadow

    whole = run(2**25)
    assert all(torch.equal(a, b) for batch in (1, 10) for a, b in zip(whole, run(batch), strict=True))
