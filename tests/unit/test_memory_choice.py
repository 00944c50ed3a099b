"""What ``memory`` chooses: the quickest that fits, what was set stays, and where nothing fits a person is told what would."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from simpletuner.config.read import load
from simpletuner.errors import ConfigError
from simpletuner.models.sana import joined
from simpletuner.reporting.progress import Reporter
from simpletuner.training import fitting, memory_choice, memory_remedies, memory_ways, step_times, translate_memory
from simpletuner.training.checking_memory import beside_free, memory_lines, refusals
from simpletuner.training.memory_choice import Choice
from simpletuner.training.memory_estimate import GIB, Estimate
from simpletuner.training.session import Session, find_pictures, open_session
from simpletuner.training.step_times import Step
from simpletuner.training.stepping_aside import away, make_decoding_lonely

RELEASED: dict[str, Any] = {"optimizer_release_gradients": True, "grad_clip_method": "value"}
LORA: dict[str, Any] = {"model_type": "lora"}
LYCORIS: dict[str, Any] = {
    **{"algo": "lokr", "multiplier": 1.0, "linear_dim": 4, "linear_alpha": 1.0},
    "apply_preset": {"target_module": ["Attention"]},
}
LOKR: dict[str, Any] = {**LORA, "lora_type": "lycoris", "lycoris_config": LYCORIS}


def costs(choice: Choice) -> Estimate:
    steps = {0: 40.0, 3: 30.0, 2: 25.0, 1: 12.0}[choice.interval]
    pictures = choice.vae_batch * (2.0 if choice.tiling else 8.0)
    phases = {"pictures": pictures, "steps": steps, "validation": 10.0 - 2 * choice.tiling}
    return Estimate(phases)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (40.0, Choice(0, False, 4)),
        (39.0, Choice(3, False, 4)),
        (29.0, Choice(2, False, 2)),
        (18.0, Choice(1, False, 2)),
        (12.0, Choice(1, False, 1)),
        (9.0, None),
    ],
)
def test_the_quickest_that_fits(budget: float, expected: Choice | None) -> None:
    vae = memory_choice.vae_ways([False, True], memory_choice.batches(4))
    found = memory_choice.choose(costs, Choice(0, False, 4), memory_choice.INTERVALS, vae, budget)
    assert found == expected


def test_batches_are_halved() -> None:
    assert memory_choice.batches(6) == [6, 3, 1]


@pytest.mark.parametrize(
    ("interval", "said"),
    [(0, "no block is"), (1, "every block is"), (3, "every 3rd block is"), (4, "one block in 4 is")],
)
def test_which_blocks_are_recomputed_is_told(interval: int, said: str) -> None:
    line = memory_choice.told(Choice(interval, False, 4), Estimate({"steps": 7 * GIB}), 8 * GIB, [])
    assert f"memory: {said} recomputed" in line


def test_told_in_one_line() -> None:
    choice = Choice(3, True, 2)
    line = memory_choice.told(choice, Estimate({"steps": 7 * GIB}), 8 * GIB, ["vae_batch_size"])
    assert line == (
        "memory: every 3rd block is recomputed, the VAE takes 2 at a time, in tiles: about 7.0 of 8.0 GiB; "
        "kept as set: vae_batch_size"
    )


@pytest.fixture
def session(pocket_run: Callable[..., Path]) -> Callable[..., Session]:
    def make(**options: Any) -> Session:
        file = pocket_run(**{"memory": "auto", **options})
        return open_session(load(str(file), environ={}), Reporter(Console(record=True, width=300)), "look")

    return make


def chosen(session: Session, gib: float) -> tuple[int, bool, int, str]:
    """What a budget makes of a session."""
    subject = fitting.subject_of(session, find_pictures(session)[0])
    made = fitting.choose(session, subject, gib * GIB)
    precision, data = session.config.options.precision, session.config.options.data
    assert made.config is session.config and made.source is session.source and len(made.found) == len(subject.found)
    assert all(item.source.encode_batch <= data.vae_batch_size for item in made.found)
    assert session.source.vae_tiling is precision.vae_enable_tiling
    return (
        translate_memory.interval(session.config.options),
        precision.vae_enable_tiling,
        data.vae_batch_size,
        session.reporter.console.export_text(),
    )


def test_a_real_configuration_is_fitted_and_what_was_set_stays(session: Callable[..., Session]) -> None:
    interval, tiling, batch, said = chosen(session(), 40)  # gradient_checkpointing is set by pocket_run
    assert (interval, tiling, batch) == (0, False, 4) and "kept as set: gradient_checkpointing" in said
    free = session(gradient_checkpointing=True, gradient_checkpointing_interval=2, vae_batch_size=3)
    assert chosen(free, 40)[:3] == (2, False, 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_without_a_gpu_it_says_so_and_chooses_nothing(session: Callable[..., Session]) -> None:
    made = session()
    before = made.config
    training, held_out = find_pictures(made)
    assert fitting.fit(made, training, held_out) == (training, held_out)
    said = made.reporter.console.export_text()
    idle = "memory auto: it acts on NVIDIA GPUs alone, and there is none here"
    assert made.config is before and idle in said
    lines, refused = memory_lines(made.config, made.family, made.facts, training, 10)
    assert lines[0] == idle and not refused, "and check says so as well"


def test_a_choice_is_put_into_a_run_of_its_own(session: Callable[..., Session]) -> None:
    made = session(vae_batch_size=4)
    subject = fitting.subject_of(made, find_pictures(made)[0])
    before = [item.source for item in subject.found]
    changed = memory_ways.with_choice(subject, Choice(3, True, 2))
    precision = changed.options.precision
    assert translate_memory.interval(changed.options) == 3 and precision.vae_enable_tiling and changed.source.vae_tiling
    assert changed.options.data.vae_batch_size == 2 and {item.source.encode_batch for item in changed.found} == {2}
    assert not memory_ways.with_choice(changed, Choice(0, False, 2)).options.precision.gradient_checkpointing
    assert [item.source for item in subject.found] == before and subject.config is made.config
    assert not subject.source.vae_tiling and {source.encode_batch for source in before} == {4}


def test_a_refusal_changes_nothing_and_names_nothing_that_was_tried(session: Callable[..., Session]) -> None:
    drawn = {"validation_disable": False, "validation_prompt": "a fox", "validation_resolution": "1024x1024"}
    made = session(**drawn, gradient_checkpointing=True)
    found = find_pictures(made)[0]
    subject = fitting.subject_of(made, found)
    least = translate_memory.estimate(memory_ways.with_choice(subject, Choice(1, True, 1)), 0.0).peak
    config, sources = made.config, [item.source for item in found]
    with pytest.raises(ConfigError, match=r"use .*model_type lora") as refused:
        fitting.choose(made, subject, 0.99 * least)
    assert "vae_enable_tiling" not in str(refused.value), "the estimate is with tiles already"
    assert made.config is config and [item.source for item in found] == sources


def test_where_nothing_fits_it_says_what_would(session: Callable[..., Session]) -> None:
    with pytest.raises(ConfigError, match=r"memory = 'auto'.*at least") as refused:
        chosen(session(), 0.4)
    assert "→ use " in str(refused.value)


def test_the_warning_names_what_helps_by_itself(session: Callable[..., Session]) -> None:
    made = session(train_batch_size=4, use_ema=True, gradient_checkpointing=False)
    subject = fitting.subject_of(made, find_pictures(made)[0])
    estimated = translate_memory.estimate(subject, 1e12)
    words, enough = memory_remedies.what_helps(subject, estimated.peak)
    assert enough and {"train_batch_size 1", "optimizer ao-adamw8bit"} <= set(words)
    line = memory_remedies.warning(subject, estimated, 1.0)
    assert line.startswith("WARNING: ") and "by itself it is not enough" in line and "GiB are free" in line
    for remedy in memory_remedies.remedies(subject.options):
        changed = memory_remedies.with_changes(subject, remedy)
        assert changed.options != subject.options


def test_check_says_whether_a_run_fits_what_is_free(session: Callable[..., Session]) -> None:
    """Without a card: what it would say of one with so many bytes free."""
    made = session(memory="as_set", gradient_checkpointing=False)
    subject = fitting.subject_of(made, find_pictures(made)[0])
    estimated = translate_memory.estimate(subject, 1e12)
    assert beside_free(subject, estimated, 24 * GIB) == "It fits: 24.0 GiB are free"
    assert beside_free(subject, estimated, estimated.peak).startswith("It fits: ")
    line = beside_free(subject, estimated, estimated.peak - 1)
    assert line == memory_remedies.warning(subject, estimated, estimated.peak - 1) and "It fits" not in line
    assert f"{estimated.where} would take about {estimated.peak / GIB:.1f} GiB" in line and "What to do first: " in line


@pytest.mark.parametrize(
    ("memory", "free", "said"),
    [
        ("auto", 20, "20.0 GiB are free; memory auto fits the run to them"),
        ("16GiB", 20, "20.0 GiB are free; memory 16 fits the run to 16.0 GiB"),
        (7.5, 6, "6.0 GiB are free; memory 7.5 fits the run to 6.0 GiB"),
    ],
)
def test_check_says_what_memory_would_fit_a_run_to(
    session: Callable[..., Session], memory: Any, free: float, said: str
) -> None:
    made = session(memory=memory)
    subject = fitting.subject_of(made, find_pictures(made)[0])
    assert beside_free(subject, translate_memory.estimate(subject, 1e12), free * GIB) == said


@pytest.mark.parametrize(("memory", "free"), [("auto", 0.4), ("0.4GiB", 20)])
def test_check_refuses_what_training_refuses_to_fit(session: Callable[..., Session], memory: Any, free: float) -> None:
    made = session(memory=memory)
    subject = fitting.subject_of(made, find_pictures(made)[0])
    with pytest.raises(ConfigError) as refused:
        fitting.choose(made, subject, 0.4 * GIB)
    assert refusals(subject, free * GIB) == list(refused.value.problems)
    assert not refusals(fitting.subject_of(session(), subject.found), 20 * GIB)
    assert not refusals(fitting.subject_of(session(memory="as_set"), subject.found), 0.4 * GIB), "a warning is enough"


def test_more_than_a_card_has_is_a_problem_of_the_configuration(pocket_run: Callable[..., Path]) -> None:
    file = pocket_run(memory=100)
    problem = memory_ways.more_than_there_is(load(str(file), environ={}), 80 * 2**30)
    assert str(problem) == f"{file}: memory = 100.0: this card has 80.0 GiB → use auto"
    for memory, total in ((24, 23.6), (80, 80), ("auto", 1), ("as_set", 1)):
        assert not memory_ways.more_than_there_is(load(str(pocket_run(memory=memory)), environ={}), int(total * 2**30))


@pytest.mark.parametrize(("given", "expected"), [("auto", "auto"), ("as-set", "as_set"), ("16GiB", 16.0), (7.5, 7.5)])
def test_values_of_memory(pocket_run: Callable[..., Path], given: Any, expected: Any) -> None:
    assert load(str(pocket_run(memory=given)), environ={}).options.precision.memory == expected


@pytest.mark.parametrize("given", ["lots", 0, -3, True, "nan", "inf", "8,5"])
def test_what_memory_is_not(pocket_run: Callable[..., Path], given: Any) -> None:
    with pytest.raises(ConfigError, match=r"memory = .* as_set, auto or a number of GiB above 0"):
        load(str(pocket_run(memory=given)), environ={})


def test_the_transformer_steps_aside_where_only_decoding_does_not_fit(session: Callable[..., Session]) -> None:
    drawn = {"validation_disable": False, "validation_prompt": "a fox", "validation_resolution": "2048x2048"}
    made = session(**drawn, optimizer="torch-sgd", vae_enable_tiling=False)
    subject = fitting.subject_of(made, find_pictures(made)[0])
    roomy = translate_memory.estimate(subject, 1e12)
    tight = translate_memory.estimate(subject, roomy.phases["validation"] - 1)
    weights = roomy.parts["weights"]
    assert not roomy.aside and tight.aside and roomy.phases["validation"] - tight.phases["validation"] == weights > 0
    assert tight.phases["steps"] == roomy.phases["steps"]


def test_decoding_alone_gives_the_same_picture_and_leaves_the_same_weights(session: Callable[..., Session]) -> None:
    made = session()
    parts = made.family.load(made.source)
    latents = torch.randn(1, made.facts.latent_channels, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = parts.vae.decode(latents, return_dict=False)[0]
    before = list(parts.transformer.parameters())
    make_decoding_lonely(parts)
    assert torch.equal(parts.vae.decode(latents, return_dict=False)[0], expected)
    assert all(a is b for a, b in zip(before, parts.transformer.parameters(), strict=True)), "an optimizer holds them"


def test_weights_that_are_away_take_no_memory_and_come_back_as_they_lay() -> None:
    """Weights laid side by side too: they are views of one stretch of memory."""
    layer = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))
    assert joined.lay_together([part.weight for part in layer])
    before = [p.detach().clone() for p in layer.parameters()]
    held = list(layer.parameters())
    with away(layer):
        assert all(p.untyped_storage().nbytes() == 0 for p in layer.parameters())
    assert all(a is b and torch.equal(a, c) for a, b, c in zip(held, layer.parameters(), before, strict=True))
    assert joined.lie_together([part.weight for part in layer])


def test_weights_come_back_where_decoding_has_found_no_memory() -> None:
    """What it had made is let go before they come: they would find none either."""
    layer = torch.nn.Linear(8, 8)
    before = layer.weight.detach().clone()
    made: list[weakref.ref[torch.Tensor]] = []

    def decode() -> None:
        pixels = torch.zeros(8)
        made.append(weakref.ref(pixels))
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError) as failed, away(layer):
        decode()
    assert failed.value.__traceback__ and made[0]() is None and torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ("given", "graphs"),
    [
        ({}, True),
        ({"optimizer": "torch-adam"}, False),
        ({"optimizer": "torch-adamw", "optimizer_config": "amsgrad=True"}, False),
        ({"gradient_accumulation_steps": 2}, False),
        ({**RELEASED, "optimizer": "adamw_bf16"}, True),
        ({**RELEASED, "optimizer": "optimi-lion"}, False),
        ({**LORA, "optimizer": "torch-adam"}, True),
        ({**LORA, "optimizer": "torch-adamw", "optimizer_config": "amsgrad=True"}, True),
        ({**LORA, **RELEASED, "optimizer": "torch-adam"}, False),
        ({**LORA, **RELEASED, "optimizer": "torch-adamw"}, True),
        ({**LORA, "lora_dropout": 0.1}, False),
        ({**LOKR, "optimizer": "optimi-lion"}, True),
        ({**LOKR, "lycoris_config": {**LYCORIS, "rank_dropout": 0.1}}, False),
        ({**LORA, "base_model_precision": "int8-torchao"}, True),
        ({**LORA, "base_model_precision": "int8dq-torchao"}, False),
        ({"transformer_forward": "plain"}, False),
    ],
)
def test_which_steps_are_known_to_become_graphs(
    given: dict[str, Any], graphs: bool, session: Callable[..., Session]
) -> None:
    made = session(**{"mixed_precision": "bf16", **given})
    subject = fitting.subject_of(made, find_pictures(made)[0])
    assert translate_memory.replays(subject) is graphs


FAST = Step("fast", True, 8, 1024, 1604462752, 20, 0)


def test_step_times_are_those_measured() -> None:
    assert step_times.milliseconds(FAST) == pytest.approx(140.7, rel=0.01)
    assert step_times.milliseconds(replace(FAST, batch=1)) == pytest.approx(29.9, rel=0.01)
    for batch, measured in ((1, 256.6), (8, 251.2), (16, 475.3)):
        found = step_times.milliseconds(replace(FAST, batch=batch, forward="diffusers"))
        assert found == pytest.approx(measured, rel=0.02)
    again = step_times.milliseconds(replace(FAST, interval=1))
    assert again is not None and 170 < again < 190
    assert step_times.milliseconds(replace(FAST, forward="plain")) is None
    assert "not known" in step_times.describe(replace(FAST, weights=4_280_000), "NVIDIA H100 80GB HBM3")
    assert "56.9 pictures/s" in step_times.describe(FAST, "NVIDIA H100 80GB HBM3")
    assert "for NVIDIA RTX 4090 it is not known" in step_times.describe(FAST, "NVIDIA RTX 4090")
    assert "without a GPU it is not known" in step_times.describe(FAST, None)


def test_a_step_is_timed_as_its_plan_has_it(session: Callable[..., Session]) -> None:
    made = session(train_batch_size=2)
    subject = fitting.subject_of(made, find_pictures(made)[0])
    plan = translate_memory.plan_of(subject)
    step = translate_memory.timed(subject, replace(plan, interval=3))
    counts = plan.footprint
    assert step == Step(subject.forward, plan.graph, 2, 64 // 16 * 64 // 16, counts.weights, counts.blocks, 3)


def test_step_times_of_a_very_small_model_on_a_cpu() -> None:
    pocket = replace(FAST, forward="diffusers", batch=16, tokens=64, weights=4_280_000, blocks=8)
    assert step_times.on_two_cores(pocket) == pytest.approx(0.4)
    assert step_times.on_two_cores(replace(pocket, batch=8, tokens=32)) == pytest.approx(0.1)
    assert (
        step_times.describe_on_cpu(pocket, 400)
        == "400 steps take about 3 minutes on two CPU cores, and validation more"
    )
    assert step_times.describe_on_cpu(FAST, 400) is None
