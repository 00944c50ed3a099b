"""Where a run goes on, a jump of the learning rate is told, and a schedule's own course is not."""

from dataclasses import asdict, replace

import pytest

from simpletuner.training import rate_jump
from simpletuner.training.learning_rate import Schedule

COURSE = Schedule("polynomial", 1e-4, 1e-8, 0, 100)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "cosine_with_restarts", "sine", "polynomial", "wsd"])
@pytest.mark.parametrize("warmup", [0, 20])
def test_the_same_schedule_never_jumps(name: str, warmup: int) -> None:
    course = replace(COURSE, name=name, warmup_steps=warmup, cycles=3)  # type: ignore[arg-type]
    assert all(rate_jump.note(course, course, None, step, 1.0) is None for step in range(1, 100))


def test_more_steps_lift_the_rate_and_both_are_told() -> None:
    longer = replace(COURSE, total_steps=2000)
    said = rate_jump.note(longer, COURSE, None, 95, 2.0)
    assert said is not None and "from 6e-06 in step 95 to 9.5e-05 in step 96" in said
    assert "spans 2000 steps instead of 100" in said and "learning_rate to 3e-06" in said and "a lower" in said
    assert rate_jump.note(replace(COURSE, total_steps=101), COURSE, None, 10, 1.0) is None, "a few per cent"
    flat = Schedule("constant", 6e-06, 0.0, 0, 2000)
    assert rate_jump.note(flat, COURSE, None, 95, 1.0) is None, "what the note says helps"
    assert rate_jump.note(replace(COURSE, name="constant"), replace(COURSE, name="constant"), None, 5, 1.0) is None


def test_other_reasons_are_told_too() -> None:
    said = rate_jump.note(replace(COURSE, peak=1e-5, name="cosine"), COURSE, None, 50, 1.0) or ""
    assert "cosine instead of polynomial" in said and "highest rate is 1e-05 instead of 0.0001" in said
    assert "a higher" in said and "spans" not in said
    assert "options of its schedule" in (rate_jump.note(replace(COURSE, power=4.0), COURSE, None, 50, 1.0) or "")


def test_of_an_older_checkpoint_the_metrics_tell_the_last_rate() -> None:
    assert rate_jump.earlier({}) is None and rate_jump.earlier({"shape": "round"}) is None
    assert rate_jump.earlier(asdict(COURSE)) == COURSE
    said = rate_jump.note(replace(COURSE, total_steps=2000), None, 6e-6, 95, 1.0)
    assert said is not None and "spans 2000 steps now" in said
    assert rate_jump.note(COURSE, None, None, 95, 1.0) is None
