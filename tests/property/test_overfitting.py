"""The overfit alarm: by the rule, and once for each rise."""

from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.evaluation.overfitting import alarm


def held_out(*losses: float, every: int = 10) -> list[tuple[int, float]]:
    return [(every * place, loss) for place, loss in enumerate(losses)]


def falling(until: int) -> list[tuple[int, float]]:
    return [(step, 1 - step / 1000) for step in range(1, until + 1)]


def flat(until: int) -> list[tuple[int, float]]:
    return [(step, 0.5) for step in range(1, until + 1)]


def test_it_is_raised_after_three_rises_while_training_falls() -> None:
    figures = held_out(1.0, 0.8, 0.7, 0.71, 0.72, 0.73)
    assert all(alarm(figures[:end], falling(50)) is None for end in range(6))
    raised = alarm(figures, falling(50))
    assert raised is not None and (raised.low, raised.held_out, raised.evaluations) == (20, (0.7, 0.73), 3)
    before, within = raised.training
    assert abs(before - (1 - 10.5 / 1000)) < 1e-9, "steps 1 to 20: as far back as there are steps"
    assert abs(within - (1 - 35.5 / 1000)) < 1e-9, "steps 21 to 50"


def test_not_while_training_rises_or_stays() -> None:
    figures = held_out(0.7, 0.71, 0.72, 0.73)
    rising = [(step, step / 100) for step in range(1, 31)]
    assert alarm(figures, flat(30)) is None and alarm(figures, rising) is None and alarm(figures, []) is None
    assert alarm(figures, falling(30)) is not None, "a rise from the very start is one"


def test_one_fall_begins_a_new_count() -> None:
    assert alarm(held_out(0.7, 0.71, 0.72, 0.715, 0.72, 0.73), falling(50)) is None
    assert alarm(held_out(0.7, 0.71, 0.72, 0.715, 0.72, 0.73, 0.74), falling(60)) is not None
    assert alarm(held_out(0.7, 0.7, 0.7, 0.7, 0.7), falling(40)) is None, "equal is no rise"


def test_a_rise_is_told_when_training_falls_at_last() -> None:
    figures = held_out(0.7, 0.71, 0.72, 0.73, 0.74, 0.75)
    late = [(step, 1.0 if step <= 30 else 0.0) for step in range(1, 51)]
    assert alarm(figures[:4], late) is None
    assert alarm(figures[:5], late) is not None
    assert alarm(figures, late) is None, "and then no more"


Losses = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), max_size=14)


@settings(max_examples=60)
@given(Losses, st.integers(1, 4), st.lists(st.floats(0, 1), min_size=140, max_size=140))
def test_once_for_each_rise_whatever_was_measured(losses: list[float], patience: int, trained: list[float]) -> None:
    figures, training = held_out(*losses), list(enumerate(trained, 1))
    told: list[int] = []
    for end in range(1, len(figures) + 1):
        raised = alarm(figures[:end], training[: 10 * end], patience)
        if raised is not None:
            rise = [loss for step, loss in figures[:end] if step >= raised.low]
            assert raised.evaluations == len(rise) - 1 >= patience and rise == sorted(set(rise))
            assert raised.training[1] < raised.training[0]
            told.append(raised.low)
    assert len(told) == len(set(told))
