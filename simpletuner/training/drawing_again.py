"""How a run drew its validation pictures, read from its record, so that its weights draw the same ones again.

In: the options that a run left in its output folder. Out: plain values, with the program's own where the run has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from simpletuner.config.options import TrainingOptions
from simpletuner.config.validation_options import SAMPLERS, ValidationOptions
from simpletuner.data.types import Size
from simpletuner.wording import counted

MOST = 2**63 - 1  # what a seed may be; no other number is near
PUBLISHED_TOKENS = 300  # SanaPipeline's own max_sequence_length
# What of a run's record decides its pictures, beside what is in a merged model anyway: base, adapter and its strength.
_KEPT = (
    "validation_guidance", "validation_num_inference_steps", "validation_seed", "seed", "validation_randomize",
    "validation_noise_scheduler", "validation_negative_prompt", "validation_resolution",
    "sana_complex_human_instruction", "tokenizer_max_length", "model_type", "base_model_precision",
    "text_encoder_1_precision",
)  # fmt: skip
_VALIDATION, _TRAINING = ValidationOptions.model_fields, TrainingOptions.model_fields


@dataclass(frozen=True, slots=True)
class Drawing:
    """What decides the pixels beside weights and prompt; by default as where no run is known.

    Attributes:
        guidance: Guidance scale.
        steps: Sampler steps.
        seed: Of the first picture of every prompt.
        sampler: Its name; None for the model's own.
        negative: What not to draw.
        strength: Of an adapter.
        sizes: Of the pictures; none for the size the weights were made for.
    """

    guidance: float = _VALIDATION["validation_guidance"].default
    steps: int = _VALIDATION["validation_num_inference_steps"].default
    seed: int = _TRAINING["seed"].default
    sampler: str | None = None
    negative: str = ""
    strength: float = 1.0
    sizes: tuple[Size, ...] = ()


def of_run(record: Mapping[str, Any]) -> Drawing:
    """As in the run's validation; a run that drew another seed each time has none of its own."""
    seed = record.get("validation_seed")
    if seed is None:
        seed = record.get("seed")
    found = {
        "guidance": _number(record.get("validation_guidance")),
        "steps": _whole(record.get("validation_num_inference_steps")) or None,
        "seed": None if record.get("validation_randomize") is True else _whole(seed),
        "sampler": None if unknown_sampler(record) else record.get("validation_noise_scheduler") or None,
        "negative": _text(record.get("validation_negative_prompt")),
        "strength": _number(record.get("validation_lycoris_strength")),
        "sizes": _sizes(record.get("validation_resolution")),
    }
    return replace(Drawing(), **{name: value for name, value in found.items() if value is not None})  # type: ignore[arg-type]


def unknown_sampler(record: Mapping[str, Any]) -> str | None:
    """What the record says of a sampler, if there is none of that name; a damaged record, or a newer program's."""
    name = record.get("validation_noise_scheduler")
    return str(name) if name and name not in SAMPLERS else None


def told(drawing: Drawing, asked: Mapping[str, object]) -> str:
    """What is taken from the run in a sentence, "" if nothing is.

    Args:
        drawing: Of the run.
        asked: By name of an attribute what a person asked for instead; None where nothing.
    """
    said = {
        "guidance": f"guidance {drawing.guidance:g}",
        "steps": counted(drawing.steps, "step"),
        "seed": f"seed {drawing.seed}",
        "sampler": f"sampler {drawing.sampler}" if drawing.sampler else "",
        "negative": f"negative prompt {drawing.negative!r}" if drawing.negative else "",
        "strength": f"strength {drawing.strength:g}" if drawing.strength != 1 else "",
        "sizes": ", ".join(map(str, drawing.sizes)),
    }
    words = [text for name, text in said.items() if text and asked.get(name) is None]
    return f"As in the run's own validation: {', '.join(words)}. Options say otherwise." if words else ""


def kept(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's record goes with a merged model, which may be given away: how it is prompted and drawn."""
    return {key: record[key] for key in _KEPT if key in record}


def without_run(asked: Mapping[str, object]) -> str:
    """By which settings weights are drawn whose run is not known, and how to name others; "" if all are asked for.

    Args:
        asked: By name of an option what a person asked for; None where nothing.
    """
    own = Drawing()
    said = {
        "instruction": "the model's own instruction (--no-instruction)",
        "tokens": f"{PUBLISHED_TOKENS} tokens (--tokens)",
        "seed": f"seed {own.seed} (--seed)",
        "guidance": f"guidance {own.guidance:g} (--guidance)",
        "steps": f"{counted(own.steps, 'step')} (--steps)",
    }
    words = [text for name, text in said.items() if asked.get(name) is None]
    return f"How its run drew is not known, so defaults are used: {', '.join(words)}" if words else ""


def departure(record: Mapping[str, Any]) -> str:
    """Why pictures differ a little from the run's own validation, "" if nothing is known to."""
    lora = record.get("model_type") == "lora"
    parts = {"base model": "base_model_precision" if lora else "", "text encoder": "text_encoder_1_precision"}
    held = {part: record.get(key) or "no_change" for part, key in parts.items()}
    words = [f"the {part} in {value}" for part, value in held.items() if value != "no_change"]
    if not words:
        return ""
    return f"The run's own validation had {' and '.join(words)}; here it is whole, so pictures are a little different."


def _number(value: object) -> float | None:
    right = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST
    return float(value) if right else None  # type: ignore[arg-type]


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _sizes(value: object) -> tuple[Size, ...] | None:
    pairs = value if isinstance(value, list) else []
    whole = all(isinstance(pair, list) and len(pair) == 2 and all(map(_whole, pair)) for pair in pairs)
    return tuple(Size(*pair) for pair in pairs) if whole and pairs else None
