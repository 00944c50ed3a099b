"""What every learning-rate schedule must do; a new one is tested at once."""

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.config.options import TrainingOptions
from simpletuner.training.learning_rate import Schedule, ScheduleName

NAMES: tuple[ScheduleName, ...] = get_args(ScheduleName)


def test_the_option_offers_exactly_the_schedules() -> None:
    assert get_args(TrainingOptions.model_fields["lr_scheduler"].annotation) == NAMES


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    peak = draw(st.floats(1e-8, 1.0))
    return Schedule(
        name=draw(st.sampled_from(NAMES)),
        peak=peak,
        end=peak * draw(st.floats(0.0, 1.0)),
        warmup_steps=draw(st.integers(0, 30)),
        total_steps=draw(st.integers(1, 60)),
        power=draw(st.floats(0.1, 5.0)),
        cycles=draw(st.integers(1, 4)),
        decay_share=draw(st.floats(0.05, 1.0)),
    )


@given(schedules())
def test_rates_are_finite_never_negative_never_above_the_peak_and_a_function_of_the_step(schedule: Schedule) -> None:
    rates = [schedule.at(step) for step in range(100)]
    assert all(math.isfinite(rate) and 0 <= rate <= schedule.peak * (1 + 1e-9) for rate in rates)
    assert rates[::-1] == [schedule.at(step) for step in reversed(range(100))]


@given(schedules())
def test_the_first_step_learns_and_the_peak_is_reached_after_warm_up(schedule: Schedule) -> None:
    assert schedule.at(0) > 0
    middle = (schedule.peak + schedule.end) / 2  # a sine starts half-way up
    assert schedule.at(schedule.warmup_steps) == pytest.approx(middle if schedule.name == "sine" else schedule.peak)


@given(schedules())
def test_it_rises_to_the_peak_and_never_again(schedule: Schedule) -> None:
    rates = [schedule.at(step) for step in range(100)]
    warm = schedule.warmup_steps if schedule.name != "constant" else 0
    assert rates[:warm] == sorted(rates[:warm])
    if schedule.name in ("sine", "cosine_with_restarts"):  # up and down again, between end and peak
        assert all(schedule.end * (1 - 1e-9) <= rate for rate in rates[warm:])
        return
    assert all(after <= before * (1 + 1e-9) for before, after in zip(rates[warm:], rates[warm + 1 :], strict=False))


@given(schedules())
def test_past_the_end_it_stays(schedule: Schedule) -> None:
    end = max(schedule.total_steps, schedule.warmup_steps + 1)
    assert {schedule.at(end + step) for step in (0, 1, 1000)} == {schedule.at(end)}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_its_name_says(name: ScheduleName) -> None:
    """The share of the peak half-way and at the end of 100 steps, with an end rate of a tenth and power 2."""
    expected = {
        "constant": (1.0, 1.0),
        "constant_with_warmup": (1.0, 1.0),
        "linear": (0.55, 0.1),
        "cosine_with_restarts": (1.0, 0.1),
        "sine": (0.55, 0.55),
        "wsd": (1.0, 0.1),
        "cosine": (0.55, 0.1),
        "polynomial": (0.1 + 0.9 * 0.25, 0.1),
    }
    schedule = Schedule(name, 1.0, 0.1, 0, 100, 2.0, cycles=2)
    assert (schedule.at(50), schedule.at(100)) == pytest.approx(expected[name]), "a new schedule needs a line here"
