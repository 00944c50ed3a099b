"""Options of noise, loss and rollout: each reaches its plain value, contradictions are named, what is in force is said."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tables import row_name, value_at

from simpletuner.config.noise_options import FlowOptions, LossOptions, RolloutOptions
from simpletuner.config.read import RunConfig, load
from simpletuner.data.types import Placement, Size
from simpletuner.errors import ConfigError
from simpletuner.flow.densities import Beta, CosMap, Cubic, Listed, LogitNormal, Mode, Uniform
from simpletuner.flow.losses import Loss, Weighting
from simpletuner.flow.perturbation import Perturbation
from simpletuner.flow.schedules import Bias
from simpletuner.models.base import Facts
from simpletuner.training import translate, translate_noise
from simpletuner.training.precision import choose

FACTS = Facts(alignment=32, stride=32, patch_size=1, shift=3.0, native_resolution=1024)
Read = Callable[..., RunConfig]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Write a configuration with one dataset and load it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "a.png")

    def make(**options: Any) -> RunConfig:
        offset = options.pop("timestep_sampling_offset", 0)
        entries = [
            {"id": "a", "instance_data_dir": "pictures", "timestep_sampling_offset": offset},
            {"id": "t", "dataset_type": "text_embeds", "default": True},
        ]
        Path("config.json").write_text(json.dumps({"max_train_steps": 50, **options}))
        Path("multidatabackend.json").write_text(json.dumps(entries))
        return load(environ={})

    return make


def plain(config: RunConfig) -> SimpleNamespace:
    options = config.options
    return SimpleNamespace(
        density=translate_noise.density(options, FACTS),
        perturbation=translate_noise.perturbation(options),
        loss=translate_noise.loss(options),
        weighting=translate_noise.weighting(options),
        rollout=translate_noise.rollout(options),
        identity=translate_noise.identity(options),
    )


RANGE = {"timestep_bias_strategy": "range", "timestep_bias_begin": 200, "timestep_bias_end": 500}
WALK = {"scheduled_sampling_max_step_offset": 10, "scheduled_sampling_probability": 0.25}
RAMP = {**WALK, "scheduled_sampling_ramp_steps": 40}
ROWS: list[tuple[dict[str, Any], str, object]] = [
    ({"flow_schedule_shift": 0.1}, "density.shift", 0.1),
    ({"flow_schedule_auto_shift": True}, "density.shift", "auto"),
    ({"flow_sigmoid_mean": 0.5}, "density.shape", LogitNormal(0.5, 1.0)),
    ({"flow_sigmoid_scale": 0.5}, "density.shape", LogitNormal(0.0, 0.5)),
    ({"flow_use_uniform_schedule": True}, "density.shape", Uniform()),
    ({"flow_density": "uniform"}, "density.shape", Uniform()),
    ({"flow_density": "beta"}, "density.shape", Beta(2, 2)),
    ({"flow_use_beta_schedule": True, "flow_beta_schedule_alpha": 3}, "density.shape", Beta(3, 2)),
    ({"flow_use_beta_schedule": True, "flow_beta_schedule_beta": 3}, "density.shape", Beta(2, 3)),
    ({"flow_density": "mode"}, "density.shape", Mode(1.29)),
    ({"flow_density": "mode", "flow_mode_scale": -0.5}, "density.shape", Mode(-0.5)),
    ({"flow_density": "cosmap"}, "density.shape", CosMap()),
    ({"flow_cubic_schedule_weights": [0, 0.1, 0.9, 1]}, "density.shape", Cubic((0, 0.1, 0.9, 1))),
    ({"flow_cubic_schedule_weights": "0, 0.1, 0.9, 1"}, "density.shape", Cubic((0, 0.1, 0.9, 1))),
    ({"flow_custom_timesteps": "900,500"}, "density.shape", Listed((0.9, 0.5))),
    (
        {"flow_custom_timesteps": [900, 500], "flow_timesteps_mode": "round_robin"},
        "density.shape",
        Listed((0.9, 0.5), "round-robin"),
    ),
    ({"flow_stratified_sampling": True}, "density.stratified", True),
    (
        {"timestep_bias_strategy": "earlier", "timestep_bias_multiplier": 2, "timestep_bias_portion": 0.5},
        "density.bias",
        Bias(0, 0.5, 2),
    ),
    ({"timestep_bias_strategy": "later", "timestep_bias_multiplier": 2}, "density.bias", Bias(0.75, 1, 2)),
    ({**RANGE, "timestep_bias_multiplier": 0.5}, "density.bias", Bias(0.2, 0.5, 0.5)),
    ({"offset_noise": True}, "perturbation", Perturbation(offset=0.1, offset_probability=0.25)),
    ({"offset_noise": True, "noise_offset": 0.2}, "perturbation.offset", 0.2),
    ({"offset_noise": True, "noise_offset_probability": 1}, "perturbation.offset_probability", 1),
    ({"input_perturbation": 0.1}, "perturbation.input_strength", 0.1),
    ({"input_perturbation": 0.1, "input_perturbation_steps": 7}, "perturbation.input_steps", 7),
    ({"mixflow_enabled": True}, "perturbation.slowed", 0.8),
    ({"mixflow_enabled": True, "mixflow_gamma": 0.4}, "perturbation.slowed", 0.4),
    ({"loss_type": "huber"}, "loss", Loss("huber", 0.1, "snr")),
    ({"loss_type": "smooth_l1", "huber_c": 0.3}, "loss", Loss("smooth_l1", 0.3, "snr")),
    ({"loss_type": "huber", "huber_schedule": "exponential"}, "loss", Loss("huber", 0.1, "exponential")),
    ({"weighting_scheme": "cosmap"}, "weighting", Weighting("cosmap")),
    ({"snr_gamma": 5}, "weighting", Weighting("min_snr", gamma=5)),
    ({"use_soft_min_snr": True}, "weighting", Weighting("soft_min_snr")),
    ({"use_soft_min_snr": True, "soft_min_snr_sigma_data": 1}, "weighting", Weighting("soft_min_snr", sigma_data=1)),
    (WALK, "rollout.max_offset", 10),
    (WALK, "rollout.ramp.start", 0.25),
    ({**WALK, "scheduled_sampling_strategy": "biased_late"}, "rollout.strategy", "biased_late"),
    ({**WALK, "scheduled_sampling_sampler": "dpm"}, "rollout.sampler", "dpm"),
    ({**WALK, "scheduled_sampling_order": 1}, "rollout.order", 1),
    (RAMP, "rollout.ramp.steps", 40),
    (RAMP, "rollout.ramp.start", 0.25),
    (RAMP, "rollout.ramp.end", 0.5),
    ({**RAMP, "scheduled_sampling_prob_start": 0.1}, "rollout.ramp.start", 0.1),
    ({**RAMP, "scheduled_sampling_prob_end": 0.9}, "rollout.ramp.end", 0.9),
    ({**RAMP, "scheduled_sampling_start_step": 5}, "rollout.ramp.first_step", 5),
    ({**RAMP, "scheduled_sampling_ramp_shape": "cosine"}, "rollout.ramp.shape", "cosine"),
]


@pytest.mark.parametrize(("given", "path", "expected"), ROWS, ids=row_name)
def test_an_option_reaches_its_plain_value(read: Read, given: dict[str, Any], path: str, expected: object) -> None:
    assert value_at(plain(read()), path) != expected, "this row could not fail"
    config = read(**given)
    assert value_at(plain(config), path) == expected
    assert not [n for n in config.notices if "acts only" in n], "nothing here is idle"
    density = plain(config).density.describe() != plain(read()).density.describe()
    assert density or plain(config).identity != plain(read()).identity, "told when a run is resumed"


def test_every_option_is_in_the_table() -> None:
    source = Path(translate_noise.__file__).read_text(encoding="utf-8")
    read = {n.attr for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute)}
    fields = {*FlowOptions.model_fields, *LossOptions.model_fields, *RolloutOptions.model_fields}
    tested = {key for given, _, _ in ROWS for key in given}
    assert tested == fields and fields - read == {"flow_density", "flow_use_uniform_schedule", "flow_use_beta_schedule"}


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"flow_use_uniform_schedule": True, "flow_use_beta_schedule": True}, "another density"),
    ({"flow_density": "mode", "flow_cubic_schedule_weights": [0, 0, 1, 1]}, "another density"),
    ({"flow_density": "cosmap", "flow_sigmoid_scale": 2}, "no sigmoid"),
    ({"flow_use_beta_schedule": True, "flow_sigmoid_mean": 1}, "no sigmoid"),
    ({"flow_cubic_schedule_weights": [0, 0.9, 0.1, 1]}, "must not decrease"),
    ({"flow_cubic_schedule_weights": [0, 1]}, "four numbers"),
    ({"flow_cubic_schedule_weights": "a,b,c,d"}, "list of numbers"),
    ({"flow_custom_timesteps": [0.1, 0.9]}, "multiply them by 1000"),
    ({"flow_custom_timesteps": [100, 1001]}, "1000"),
    ({"flow_custom_timesteps": [100], "flow_schedule_shift": 3}, "exactly as they are written"),
    ({"flow_custom_timesteps": [100], "flow_schedule_auto_shift": True}, "exactly as they are written"),
    (
        {"flow_custom_timesteps": [100], "timestep_bias_strategy": "later", "timestep_bias_multiplier": 2},
        "several times",
    ),
    (
        {"flow_custom_timesteps": [100], "flow_timesteps_mode": "round-robin", "flow_stratified_sampling": True},
        "draws nothing",
    ),
    (
        {"timestep_bias_strategy": "range", "timestep_bias_begin": 5, "timestep_bias_end": 5}
        | {"timestep_bias_multiplier": 2},
        "smaller timestep first",
    ),
    ({"timestep_sampling_offset": 0.3, "flow_density": "mode"}, "no normal draw to move"),
    ({"timestep_sampling_offset": 0.3, "flow_custom_timesteps": [100]}, "no normal draw to move"),
    ({"snr_gamma": 5, "use_soft_min_snr": True}, "keep one"),
    ({"snr_gamma": 5, "weighting_scheme": "cosmap"}, "keep one"),
    ({"weighting_scheme": "mode"}, "flow_density"),
    ({"weighting_scheme": "logit_normal"}, "default one"),
    ({"snr_gamma": 5, "snr_weight": 2}, "leave it out"),
    ({"loss_type": "huber", "huber_c": 2}, "at most 1"),
    ({"mixflow_enabled": True, **WALK}, "remove one"),
    ({"scheduled_sampling_reflexflow": True}, "plain rollout works"),
    ({**WALK, "scheduled_sampling_order": 3}, "scheduled_sampling_order"),
]


@pytest.mark.parametrize(("given", "words"), CONTRADICTIONS, ids=row_name)
def test_a_contradiction_is_named_once(read: Read, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(**given)
    (problem,) = raised.value.problems
    assert words in str(problem)


IDLE: list[dict[str, Any]] = [
    {"flow_beta_schedule_alpha": 3}, {"flow_mode_scale": 1}, {"flow_timesteps_mode": "random"},
    {"timestep_bias_multiplier": 2}, {"timestep_bias_strategy": "later"}, {"timestep_bias_portion": 0.5},
    {"timestep_bias_end": 500}, {"mixflow_gamma": 0.5}, {"noise_offset": 0.1}, {"noise_offset_probability": 1},
    {"input_perturbation_steps": 9}, {"huber_c": 0.2}, {"huber_schedule": "snr"}, {"soft_min_snr_sigma_data": 1},
    {"scheduled_sampling_probability": 1}, {"scheduled_sampling_order": 2}, {"scheduled_sampling_ramp_shape": "cosine"},
    {"scheduled_sampling_max_step_offset": 5}, {"flow_stratified_sampling": True, "train_batch_size": 1},
    {**WALK, "scheduled_sampling_sampler": "euler", "scheduled_sampling_order": 2},
    {**WALK, "scheduled_sampling_prob_end": 1},
]  # fmt: skip


@pytest.mark.parametrize("given", IDLE, ids=row_name)
def test_what_changes_nothing_is_said(read: Read, given: dict[str, Any]) -> None:
    said = [notice for notice in read(**given).notices if notice.split(":")[0] in given]
    assert len(said) == 1


def test_off_is_off(read: Read) -> None:
    """The original's own off values ask for nothing and change nothing."""
    off: dict[str, Any] = dict.fromkeys(
        ("offset_noise", "mixflow_enabled", "use_soft_min_snr", "flow_use_beta_schedule"), False
    )
    off |= dict.fromkeys(("snr_gamma", "input_perturbation", "scheduled_sampling_max_step_offset"), 0)
    off |= {"flow_cubic_schedule_weights": None, "flow_custom_timesteps": "none", "timestep_bias_strategy": "none"}
    off |= {"snr_weight": 1.0, "scheduled_sampling_reflexflow": False}
    assert vars(plain(read(**off))) == vars(plain(read()))
    assert plain(read()).rollout is None


def test_what_is_in_force_is_said(read: Read) -> None:
    placed = SimpleNamespace(placement=Placement(Size(1024, 1024), Size(1024, 1024), (0, 0, 1024, 1024)))
    found: Any = SimpleNamespace(source=SimpleNamespace(timestep_offset=0.0), placed=[placed])
    moved: Any = SimpleNamespace(source=SimpleNamespace(timestep_offset=0.3), placed=[placed])

    def said(resumed: bool = False, **options: Any) -> str:
        config = read(**options)
        drawn = translate_noise.density(config.options, FACTS)
        recipe = translate.recipe(config.options, drawn, 5, choose("no", low_precision_safe=True))
        return "\n".join(translate_noise.describe(recipe, [found, moved], FACTS, resumed))

    small = SimpleNamespace(placement=Placement(Size(512, 512), Size(512, 512), (0, 0, 512, 512)))
    moved.placed = [placed, small]
    assert "1.649 at 512x512, as below, to 1.878 at 1024x1024" in said(flow_schedule_auto_shift=True)
    assert "1.649 at 512x512 to 1.878 at 1024x1024" in said(resumed=True, flow_schedule_auto_shift=True)
    moved.placed = [placed]
    silent = said()
    assert [line for line in silent.splitlines() if not line.startswith(" ")] == said(resumed=True).splitlines()
    assert "sigmoid(1 * N(0, 1)), shifted by 3" in silent and "offset 0.3" in silent and silent.count("█") > 20
    assert "Loss: mean squared error (l2), every sigma counts alike" in silent and "Rollout" not in silent
    loud = said(
        flow_schedule_auto_shift=True, loss_type="huber", snr_gamma=5, offset_noise=True, input_perturbation=0.1,
        input_perturbation_steps=10, timestep_bias_strategy="later", timestep_bias_multiplier=2, **WALK,
    )  # fmt: skip
    for words in (
        "1.878 at 1024x1024", "2 times as often between 0.75 and 1", "huber, c = 0.1 (snr)", "min-SNR, gamma 5",
        "offset noise 0.1 for 25%", "input perturbation 0.1, falling to 0 over 10 steps", "extra forward passes",
    ):  # fmt: skip
        assert words in loud
