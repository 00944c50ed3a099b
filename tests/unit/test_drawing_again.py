"""A run's own way of drawing, from the record it leaves."""

from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from simpletuner.cli.generate import _drawing
from simpletuner.data.types import Size
from simpletuner.reporting.progress import Reporter
from simpletuner.training.drawing_again import Drawing, of_run, told, unknown_sampler

RECORD = {
    "validation_guidance": 3.5, "validation_num_inference_steps": 8, "validation_seed": 0, "seed": 7,
    "validation_noise_scheduler": "unipc", "validation_negative_prompt": "blurry", "validation_lycoris_strength": 0.5,
    "validation_resolution": [[128, 96]], "validation_randomize": False,
}  # fmt: skip


def test_a_run_draws_as_its_validation_did() -> None:
    own = Drawing(3.5, 8, 0, "unipc", "blurry", 0.5, (Size(128, 96),))
    assert of_run(RECORD) == own
    assert of_run({**RECORD, "validation_seed": None}).seed == 7
    assert of_run({**RECORD, "validation_randomize": True}).seed == 42
    sentence = told(own, {"seed": 3, "guidance": 0.0})
    assert "8 steps, sampler unipc, negative prompt 'blurry', strength 0.5, 128x96." in sentence
    assert "seed" not in sentence and "guidance" not in sentence
    asked = dict.fromkeys(("guidance", "steps", "seed", "sampler", "negative", "strength", "sizes"), 1)
    assert told(own, asked) == ""


def test_a_sampler_that_nobody_knows_is_said_and_not_used() -> None:
    said, given = StringIO(), dict.fromkeys(("guidance", "steps", "seed", "scheduler", "negative", "strength"))
    found: Any = SimpleNamespace(adapter=None, record={**RECORD, "validation_noise_scheduler": "euler"})
    reporter = Reporter(Console(file=said, width=300))
    assert _drawing(found, {**given, "sizes": ()}, reporter).sampler is None
    assert "names a sampler 'euler'" in said.getvalue() and "sampler euler" not in said.getvalue()
    said.truncate(0)
    assert _drawing(found, {**given, "sizes": (), "scheduler": "unipc"}, reporter).sampler == "unipc"
    assert "euler" not in said.getvalue()


@pytest.mark.parametrize("value", ["x", -1, None, True, [[1]], [["a", 2]], {}])
def test_a_record_that_makes_no_sense_is_passed_over(value: object) -> None:
    odd = {key: value for key in RECORD if key != "validation_randomize"}
    allowed = Drawing(negative="x") if value == "x" else Drawing()
    assert unknown_sampler(odd) == (None if value in (None, {}) else str(value)) and unknown_sampler(RECORD) is None
    assert of_run(odd) == allowed and of_run({}) == Drawing()
