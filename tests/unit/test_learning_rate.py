import math

import pytest
import torch
from transformers import optimization

from simpletuner.training.learning_rate import Schedule


def at(name: str, *steps: int) -> list[float]:
    schedule = Schedule(name, 1.0, 0.1, 10, 110, 2.0)  # type: ignore[arg-type]
    return [schedule.at(step) for step in steps]


def test_warm_up_rises_to_the_peak() -> None:
    for name in ("constant_with_warmup", "linear", "cosine", "polynomial"):
        assert at(name, 0, 4, 9, 10) == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert at("constant", 0, 200) == [1.0, 1.0]


def test_courses_after_warm_up() -> None:
    assert at("linear", 60, 110, 500) == pytest.approx([0.55, 0.1, 0.1])
    assert at("cosine", 60, 110, 500) == pytest.approx([0.55, 0.1, 0.1])
    assert at("polynomial", 60, 110, 500) == pytest.approx([0.1 + 0.9 * 0.25, 0.1, 0.1])
    assert at("constant_with_warmup", 60, 500) == [1.0, 1.0]


def test_sine_is_a_wave_about_the_middle() -> None:
    wave = Schedule("sine", 1.0, 0.1, 10, 110, cycles=2)
    assert [wave.at(step) for step in (10, 22, 35, 60, 110, 500)] == pytest.approx(
        [0.55, 0.55 + 0.45 * math.sin(2 * math.pi * 2 * 0.12), 0.55, 0.55, 0.55, 0.55]
    )
    assert [wave.at(step) for step in (0, 9)] == pytest.approx([0.055, 0.55])


def test_restarts_begin_at_the_peak_each_time() -> None:
    restarts = Schedule("cosine_with_restarts", 1.0, 0.1, 10, 110, cycles=4)
    assert [restarts.at(step) for step in (10, 35, 60, 85)] == pytest.approx([1.0] * 4)
    assert restarts.at(34) < 0.11 and [restarts.at(step) for step in (110, 999)] == pytest.approx([0.1, 0.1])


def test_wsd_is_stable_and_then_decays_over_its_share_of_the_run() -> None:
    schedule = Schedule("wsd", 1.0, 0.1, 10, 110, decay_share=0.2)
    assert [schedule.at(step) for step in range(10, 89)] == pytest.approx([1.0] * 79)
    expected = [0.1 + 0.9 * (1 - math.sqrt(share)) for share in (0.5, 1.0)]
    assert [schedule.at(88 + round(22 * share)) for share in (0.5, 1.0)] == pytest.approx(expected)
    assert schedule.at(110) == schedule.at(500) == pytest.approx(0.1)


@pytest.mark.parametrize("cycles", [1, 3])
def test_courses_are_transformers_own(cycles: int) -> None:
    """After warm-up, which they count one step later than ours, and up to the end, which they swing past."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    references = {
        "cosine_with_restarts": optimization.get_cosine_with_hard_restarts_schedule_with_warmup(
            optimizer, 10, 110, num_cycles=cycles
        ),
        "linear": optimization.get_linear_schedule_with_warmup(optimizer, 10, 110),
        "cosine": optimization.get_cosine_schedule_with_warmup(optimizer, 10, 110),
    }
    for name, reference in references.items():
        (factor,) = reference.lr_lambdas
        ours = Schedule(name, 1.0, 0.0, 10, 110, cycles=cycles)  # type: ignore[arg-type]
        assert [ours.at(step) for step in range(10, 111)] == pytest.approx([factor(s) for s in range(10, 111)])
