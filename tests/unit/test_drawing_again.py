"""A run's own way of drawing, from the record it leaves."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from simpletuner.cli.generate import _drawing, generate
from simpletuner.data.types import Size
from simpletuner.reporting.progress import Reporter
from simpletuner.training import subject
from simpletuner.training.drawing_again import Drawing, departure, kept, of_run, told, unknown_sampler, without_run

RECORD = {
    "validation_guidance": 3.5, "validation_num_inference_steps": 8, "validation_seed": 0, "seed": 7,
    "validation_noise_scheduler": "unipc", "validation_negative_prompt": "blurry", "validation_lycoris_strength": 0.5,
    "validation_resolution": [[128, 96]], "validation_randomize": False,
}  # fmt: skip

PARTS = {
    "validation_guidance": "guidance", "validation_num_inference_steps": "steps", "validation_seed": "seed",
    "validation_noise_scheduler": "sampler", "validation_negative_prompt": "negative",
    "validation_lycoris_strength": "strength", "validation_resolution": "sizes", "validation_randomize": "seed",
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


def test_a_sampler_that_nobody_knows_is_said_and_not_used(tmp_path: Path) -> None:
    """The rest of the record is; and the sampler that a person asks for draws without a word."""
    (tmp_path / "out" / "pipeline").mkdir(parents=True)
    (tmp_path / "out" / "pipeline" / "model_index.json").write_text("{}")
    (tmp_path / "out" / subject.RECORD).write_text(json.dumps({**RECORD, "validation_noise_scheduler": "euler"}))

    def drawn(*words: str) -> tuple[Drawing, str]:
        model = str(tmp_path / "out")
        given = generate.make_context("generate", [model, "--prompt", "a fox", *words]).params
        said = StringIO()
        how = _drawing(subject.find(model, None, None), given, Reporter(Console(file=said, width=400)))
        return how, said.getvalue()

    how, said = drawn()
    assert how == Drawing(3.5, 8, 0, None, "blurry", 1.0, (Size(128, 96),)), "its strength has no adapter to act on"
    assert "names a sampler 'euler'" in said and "the model's own draws" in said and "sampler euler" not in said
    how, said = drawn("--scheduler", "unipc")
    assert how.sampler == "unipc" and "euler" not in said and "guidance 3.5, 8 steps" in said


ODD = {
    "validation_guidance": ("x", -1, None, True, [1], {}, float("inf"), float("nan"), 10**400),
    "validation_num_inference_steps": ("x", -1, 0, None, True, 2.5, [1], {}),
    "validation_seed": ("x", -1, True, 2.5, [1], {}, 2**64),
    "validation_noise_scheduler": ("x", -1, None, True, [[1]], {}, "", ["unipc"]),
    "validation_negative_prompt": (-1, None, True, [1], {}, ["blurry"]),
    "validation_lycoris_strength": ("x", -1, None, True, [1], {}),
    "validation_resolution": ("128x96", -1, None, True, [], [[1]], [["a", 2]], [[0, 64]], [[64, 64], 64], {}),
    "validation_randomize": ("x", 1, None, "true"),
}  # fmt: skip


@pytest.mark.parametrize("key", RECORD)
def test_a_record_that_makes_no_sense_is_passed_over(key: str) -> None:
    """Each part by itself: what is left of the record counts."""
    if key == "seed":
        record, part, values = {**RECORD, "validation_seed": None}, "seed", ODD["validation_seed"]
    else:
        record, part, values = RECORD, PARTS[key], ODD[key]
    own = getattr(of_run(RECORD if key == "validation_randomize" else {}), part)
    for value in values:
        assert of_run({**record, key: value}) == replace(of_run(record), **{part: own}), value
        if key == "validation_noise_scheduler":
            assert unknown_sampler({key: value}) == (str(value) if value else None)
    assert unknown_sampler(RECORD) is None and of_run({}) == Drawing()


def test_a_base_that_was_quantised_in_the_run_is_told() -> None:
    over = {"model_type": "lora", "base_model_precision": "nf4-bnb", "text_encoder_1_precision": "no_change"}
    assert "had the base model in nf4-bnb; here it is whole" in departure(over)
    assert "and the text encoder in int8-torchao" in departure({**over, "text_encoder_1_precision": "int8-torchao"})
    assert not departure({**over, "model_type": "full"}) and not departure({})


def test_what_goes_with_a_merged_model_decides_pictures_and_tells_nothing_else() -> None:
    beside = {"hub_token": "secret", "output_dir": "/mine", "variant": "fp16", "validation_prompt": "mine"}
    text = {"sana_complex_human_instruction": [], "tokenizer_max_length": 32}
    whole = kept({**RECORD, **text, **beside})
    assert not whole.keys() & beside.keys() and text.items() <= whole.items()
    assert of_run(whole) == replace(of_run(RECORD), strength=1.0), "which is in the weights"
    assert kept({}) == {}


def test_what_is_drawn_without_a_record_is_said_with_its_options() -> None:
    said = without_run({"seed": 1, "tokens": 32, "guidance": None})
    assert "the model's own instruction (--no-instruction), guidance 4.5 (--guidance), 20 steps (--steps)" in said
    assert "--seed" not in said and "--tokens" not in said
    assert not without_run(dict.fromkeys(("instruction", "tokens", "seed", "guidance", "steps"), 1))
