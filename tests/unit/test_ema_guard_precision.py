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
