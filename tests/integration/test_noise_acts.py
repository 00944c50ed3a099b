"""Noise, loss and rollout in the loop and in real runs: they act, held-out loss stays plain, a resumed run is the same."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from safetensors.torch import load_file

from simpletuner.config.read import load
from simpletuner.flow.densities import Listed
from simpletuner.flow.losses import Loss, Weighting, mean_squared_error
from simpletuner.flow.path import add_noise
from simpletuner.flow.perturbation import Perturbation
from simpletuner.flow.rollout import Ramp, Rollout
from simpletuner.flow.schedules import Density
from simpletuner.reporting.progress import Reporter
from simpletuner.training.run import train
from simpletuner.training.step import noise_batch, plain_score, position_generator, rolled_out, score


def shown(recipe: Any, position: int = 0, trainee: Any = None, first: int = 0) -> Any:
    """The plain and the rolled-out batch of one position."""
    trainee = trainee or toy.trainee()
    batch = replace(toy.batch(0, 1, 2), first=first)
    generator = position_generator(recipe.seed, position, trainee.device)
    plain = noise_batch(batch, trainee, recipe, position, generator)
    return plain, rolled_out(batch, plain, trainee, recipe, position, generator)


def test_a_rollout_uses_the_model_its_text_and_its_mode() -> None:
    trainee = toy.trainee()
    walk = Rollout(6, Ramp(1.0, 1.0), "biased_late", "euler")
    plain, walked = shown(toy.recipe(rollout=walk), 0, trainee)
    assert torch.equal(plain.target, walked.target) and torch.equal(plain.sigmas, walked.sigmas)
    assert not torch.equal(plain.noisy_latents, walked.noisy_latents)
    asked = trainee.family.shown
    assert 1 <= len(asked) <= 6 and all(sigmas.min() > plain.sigmas.min() for _, sigmas, _ in asked)
    texts = toy.batch(0, 1, 2)
    real = texts.mask[:, :, None]
    means = (texts.text * real).sum(1) / real.sum(1)
    rows = asked[-1][2]  # in the last pass all that walk are there, each with its own caption
    assert all((means - row).abs().sum(1).min() < 1e-6 for row in rows)


def test_a_rollout_of_probability_0_leaves_the_batch_bit_identical_and_asks_nothing() -> None:
    trainee = toy.trainee()
    plain, walked = shown(toy.recipe(rollout=Rollout(6, Ramp(0.0, 1.0, 5, 5))), 0, trainee)
    assert walked is plain and not trainee.family.shown
    without, _ = shown(toy.recipe())
    assert torch.equal(plain.noisy_latents, without.noisy_latents)
    later = shown(toy.recipe(rollout=Rollout(6, Ramp(0.0, 1.0, 5, 5), "biased_late")), 10)
    assert later[0] is not later[1]


def test_steps_and_turns_follow_the_position() -> None:
    recipe = toy.recipe(accumulation=2, density=Density(Listed((0.1, 0.5, 0.7, 0.9), "round-robin")))
    sigmas = torch.cat([shown(recipe, n, first=3 * n)[0].sigmas for n in range(4)])
    assert [round(s, 3) for s in sigmas.tolist()] == [0.1, 0.5, 0.7, 0.9] * 3
    fading = toy.recipe(accumulation=2, perturbation=Perturbation(input_strength=0.5, input_steps=3))
    for position in range(8):
        made, plain = shown(fading, position)[0], shown(toy.recipe(accumulation=2), position)[0]
        assert torch.equal(made.noisy_latents, plain.noisy_latents) is (position >= 6)


def test_the_score_is_weighted_and_the_held_out_score_is_plain() -> None:
    trainee, batch = toy.trainee(), toy.batch(0, 1)
    sigmas = torch.tensor([0.2, 0.8])
    noised = add_noise(batch.latents, torch.ones_like(batch.latents), sigmas)
    loss, weighting = Loss("huber", 0.2, "snr"), Weighting("min_snr")
    recipe = toy.recipe(loss=loss, weighting=weighting)
    prediction = trainee.family.predict(
        trainee.transformer, noised.noisy_latents, noised.timesteps, batch.text, batch.mask
    )
    wanted = loss.per_sample(prediction, noised.target, sigmas) * torch.tensor([5 * 0.04, 0.04])
    torch.testing.assert_close(score(trainee, recipe, batch, noised), wanted)
    plain = mean_squared_error(prediction, noised.target)
    torch.testing.assert_close(plain_score(trainee, recipe, batch, noised), plain)
    torch.testing.assert_close(score(trainee, toy.recipe(), batch, noised), plain)


EVERYTHING: dict[str, Any] = {
    **{"flow_density": "beta", "flow_stratified_sampling": True},
    **{"timestep_bias_strategy": "later", "timestep_bias_multiplier": 2},
    **{"offset_noise": True, "noise_offset_probability": 0.5, "input_perturbation": 0.1},
    **{"input_perturbation_steps": 9, "loss_type": "smooth_l1", "snr_gamma": 5},
    "gradient_checkpointing": True,  # under a walk there is nothing to recompute
    **{"scheduled_sampling_max_step_offset": 4, "scheduled_sampling_ramp_steps": 4},
    **{"scheduled_sampling_prob_start": 0.5, "scheduled_sampling_prob_end": 1.0},
}


@pytest.fixture
def run(pocket_run: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Train the pocket model in this process; the output folder."""

    def made(name: str, steps: int = 4, **options: Any) -> Path:
        out = tmp_path / name
        config = pocket_run(**{**options, "max_train_steps": steps, "output_dir": str(out)})
        file = config.with_name("multidatabackend.json")
        pictures, texts = json.loads(file.read_text())
        file.write_text(json.dumps([pictures, {**pictures, "id": "held-out", "dataset_type": "eval"}, texts]))
        train(load(str(config), environ={}), Reporter())
        return out

    return made


def lines_of(out: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(next((out / "pipeline" / "transformer").glob("*.safetensors")))


def test_a_run_with_everything_resumes_bit_exactly(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run("whole", **EVERYTHING)
    said = capsys.readouterr().out
    for words in ("Beta(2, 2)", "spread evenly", "offset noise", "smooth_l1", "min-SNR", "Rollout: 50% to 100%"):
        assert words in " ".join(said.split())
    run("parts", 2, **EVERYTHING)
    parts = run("parts", 4, **EVERYTHING)
    first, second = weights(whole), weights(parts)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    plain = run("plain")
    before = lines_of(plain, "eval")[0]
    assert lines_of(whole, "eval")[0]["by_sigma"] == before["by_sigma"], "held-out loss is a plain mean square"
    assert lines_of(whole, "step")[0]["loss"] != lines_of(plain, "step")[0]["loss"]
    capsys.readouterr()
    run("parts", 5, **{**EVERYTHING, "loss_type": "l2", "scheduled_sampling_max_step_offset": 0})
    told = " ".join(capsys.readouterr().out.split())
    assert "loss, rollout changed since" in told


def test_an_adapter_with_dropout_and_rollout_resumes_bit_exactly(run: Callable[..., Path]) -> None:
    """A walk draws dropout too, so it must draw the same after a stop."""
    options = {"model_type": "lora", "lora_rank": 2, "lora_dropout": 0.3, "eval_loss_disable": True}
    options |= {"scheduled_sampling_max_step_offset": 5, "scheduled_sampling_probability": 1.0}
    whole = run("whole", 2, **options)
    run("parts", 1, **options)
    parts = run("parts", 2, **options)
    name = "pytorch_lora_weights.safetensors"
    first, second = load_file(whole / name), load_file(parts / name)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    told = [[line["loss"] for line in lines_of(out, "step")] for out in (whole, parts)]
    assert told[0] == told[1]
