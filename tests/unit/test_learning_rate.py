import pytest

from simpletuner.training.learning_rate import Schedule


def at(name: str, *steps: int) -> list[float]:
    schedule = Schedule(name, 1.0, 0.1, 10, 110, 2.0)  # type: ignore[arg-type]
    return [schedule.at(step) for step in steps]


def test_warm_up_rises_to_the_peak() -> None:
    for name in ("constant_with_warmup", "linear", "cosine", "polynomial"):
        assert at(name, 0, 4, 9, 10) == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert at("constant", 0, 200) == [1.0, 1.0]


def test_courses_after_warm_up() -> None:
    assert at("linear", 60, 110, 500) == pytest.approx([0.5, 0.0, 0.0])
    assert at("cosine", 60, 110, 500) == pytest.approx([0.55, 0.1, 0.1])
    assert at("polynomial", 60, 110, 500) == pytest.approx([0.1 + 0.9 * 0.25, 0.1, 0.1])
    assert at("constant_with_warmup", 60, 500) == [1.0, 1.0]
