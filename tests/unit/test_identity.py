"""What a resumed run is told has changed: also what no option says, and what the log rounds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from simpletuner.config.read import load
from simpletuner.data.encode import PlacedSample
from simpletuner.data.types import Placement, Sample, Size
from simpletuner.errors import ResumeError
from simpletuner.models.base import Facts, TextSettings
from simpletuner.training import translate, translate_noise
from simpletuner.training.precision import Precision, choose_for_adapter
from simpletuner.training.resuming import REMEMBERED, Identity

SIZE = Size(64, 64)
FACTS = Facts(alignment=32, stride=32, patch_size=1, shift=3.0, native_resolution=64)
LOKR = {"algo": "lokr", "multiplier": 1.0, "linear_dim": 4, "linear_alpha": 1.0}
LYCORIS = {"model_type": "lora", "lora_type": "lycoris"}
MANY = list(range(100, 1000, 50))
WALKS = {"scheduled_sampling_max_step_offset": 5}


def sample(caption: str = "a fox", mask: str = "") -> PlacedSample:
    return PlacedSample(Sample(Path("a.png"), SIZE, (caption,)), Placement(SIZE, SIZE, (0, 0, 64, 64)), "k", None, mask)


@pytest.fixture
def identity(pocket_run: Callable[..., Path]) -> Callable[..., Identity]:
    def make(
        samples: Sequence[PlacedSample] = (),
        precision: Precision | None = None,
        **options: Any,
    ) -> Identity:
        config = load(str(pocket_run(**options)))
        drawn = translate_noise.density(config.options, FACTS)
        precision = precision or choose_for_adapter("bf16")
        return translate.identity(config, samples, precision, TextSettings((), 300), drawn, "sketch", {})

    return make


def told(now: Identity, before: Identity) -> str:
    """What is said, after a checkpoint's way through JSON."""
    return "".join(now.compare(json.loads(json.dumps(before.as_dict())), "checkpoint-2"))


def test_nothing_is_said_where_nothing_changed(identity: Callable[..., Identity]) -> None:
    options = {**LYCORIS, "lycoris_config": {**LOKR, "apply_preset": {"target_module": ["Attention"]}}, **WALKS}
    assert told(identity([sample(mask="m")], **options), identity([sample(mask="m")], **options)) == ""


def test_that_none_of_the_pictures_is_left_is_told_and_that_one_is_left_is_not(
    identity: Callable[..., Identity],
) -> None:
    def of(*digests: str) -> Identity:
        return identity([replace(sample(), digest=digest, key=digest) for digest in digests])

    before, words = (
        of("a", "b"),
        "WARNING: not one of the pictures that checkpoint-2 was trained on is among those of now",
    )
    others = of("c", "d").compare(json.loads(json.dumps(before.as_dict())), "checkpoint-2")
    assert others[0].startswith(f"{words}: this run") and "pictures changed" in others[1]
    assert words not in told(of("b", "c", "d"), before)
    older = {key: value for key, value in before.as_dict().items() if key != "pictures"}
    assert words not in "".join(of("c").compare(older, "checkpoint-2")), "what it was trained on cannot be told"


def test_of_many_pictures_a_checkpoint_names_some_always_the_same(identity: Callable[..., Identity]) -> None:
    digests = [hashlib.sha256(bytes([number])).hexdigest() for number in range(200)]
    many = Identity({}, {}, {}, pictures=frozenset(digests))
    named = many.as_dict()["pictures"]
    assert (
        len(named) == REMEMBERED
        and named == Identity({}, {}, {}, pictures=frozenset(digests[::-1])).as_dict()["pictures"]
    )
    assert not Identity({}, {}, {}, pictures=frozenset([*digests, "new"])).compare(many.as_dict(), "checkpoint-2")
    (line,) = Identity({}, {}, {}, pictures=frozenset(["new"])).compare(many.as_dict(), "checkpoint-2")
    assert "(64 pictures of it were looked for)" in line


def test_other_captions_and_masks_of_the_same_pictures_are_told(identity: Callable[..., Identity]) -> None:
    before = identity([sample()])
    assert "captions changed" in told(identity([sample("a red fox")]), before)
    assert "masks changed" in told(identity([sample(mask="m")]), before)


@pytest.mark.parametrize(
    ("before", "now", "what"),
    [
        ({"flow_custom_timesteps": MANY}, {"flow_custom_timesteps": [*MANY[:-1], 990]}, "noise"),
        ({"noise_offset_probability": 0.25}, {"noise_offset_probability": 0.252}, "noise changes"),
        (
            {**WALKS, "scheduled_sampling_probability": 0.25},
            {**WALKS, "scheduled_sampling_probability": 0.252},
            "rollout",
        ),
        ({"learning_rate": 1e-5}, {"learning_rate": 1e-5, "lr_scale": True}, "learning_rate (1e-05 → 2e-05)"),
    ],
    ids=["timesteps", "offset", "rollout", "rate"],
)
def test_changes_too_small_for_the_log_are_told(
    identity: Callable[..., Identity], before: dict[str, Any], now: dict[str, Any], what: str
) -> None:
    assert f"{what} changed" in told(identity(**now, offset_noise=True), identity(**before, offset_noise=True))


def test_another_multiplier_of_lycoris_is_told(identity: Callable[..., Identity]) -> None:
    layers = {"apply_preset": {"target_module": ["Attention"]}}
    one, two = (identity(**LYCORIS, lycoris_config={**LOKR, **layers, "multiplier": m}) for m in (1.0, 0.5))
    assert "lycoris_config.multiplier (1 → 0.5) changed" in told(two, one)


def test_another_dtype_of_the_base_is_said_by_its_name(identity: Callable[..., Identity]) -> None:
    bf16, exact = identity(), identity(precision=choose_for_adapter("no"))
    assert choose_for_adapter("no").base == torch.float32
    with pytest.raises(ResumeError, match="base weights in 'bfloat16', the configuration says 'float32'"):
        told(exact, bf16)
