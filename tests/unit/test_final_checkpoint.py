"""Which checkpoint is told as the final one: exactly one of a run that trains to its end."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from simpletuner.reporting.events import CheckpointSaved, Event
from simpletuner.reporting.progress import Reporter
from simpletuner.reporting.stages import Stages
from simpletuner.training.hooks import Checkpointing
from simpletuner.training.loop import StepResult

LAST = 4


class Heard(Stages):
    """Keeps the checkpoints that are told: step and whether it is the final one."""

    def __init__(self) -> None:
        super().__init__()
        self.checkpoints: list[tuple[int, bool]] = []

    def emit(self, event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            self.checkpoints.append((event.step, event.is_final))


def told(interval: int | None, until: int = LAST, asked_at: int = 0, finished: bool = True) -> list[tuple[int, bool]]:
    heard = Heard()
    saved = lambda step: Path(f"checkpoint-{step}")  # noqa: E731
    hook = Checkpointing(interval, LAST, saved, Reporter(Console(file=StringIO())), heard)
    hook.on_start(0)
    for step in range(1, until + 1):
        hook.on_step_end(StepResult(step, 1.0, 1.0, 1e-3, 0.1, 2))
        if step == asked_at:
            hook.now(step)
    hook.on_stop(until, finished)
    return heard.checkpoints


@pytest.mark.parametrize(
    ("interval", "asked_at", "expected"),
    [
        (2, 0, [(2, False), (4, True)]),  # the end is a multiple of the interval
        (3, 0, [(3, False), (4, True)]),
        (None, 0, [(4, True)]),
        (None, LAST, [(4, True)]),  # asked for at the last step by hand
        (3, 2, [(2, False), (3, False), (4, True)]),
    ],
)
def test_one_checkpoint_of_a_finished_run_is_final(
    interval: int | None, asked_at: int, expected: list[tuple[int, bool]]
) -> None:
    assert told(interval, asked_at=asked_at) == expected


def test_none_is_final_of_a_run_that_did_not_finish() -> None:
    assert told(2, until=3, finished=False) == [(2, False), (3, False)]
    # Its last step was reached, but the figures of it were not finite.
    assert told(None, finished=False) == [(4, False)]
