"""Rules of validation pictures and held-out loss: which options have nothing to act on."""

from __future__ import annotations

from collections.abc import Mapping

from simpletuner.config.options import Options
from simpletuner.config.validation_options import ValidationOptions

# What says whether anything is drawn at all.
_SOURCES = {
    "validation_disable",
    "validation_prompt",
    "user_prompt_library",
    "validation_prompt_library",
    "validation_disable_unconditional",
}


def validation_without_effect(options: Options, where: Mapping[str, str]) -> list[str]:
    """Sentences about options that are given but change no picture."""
    chosen = options.validation
    given = [key for key in ValidationOptions.model_fields if key in where and key not in _SOURCES]
    asked = chosen.validation_prompt or chosen.user_prompt_library or chosen.validation_prompt_library
    if chosen.validation_disable:
        return []  # it says itself that nothing is drawn
    if not asked and chosen.validation_disable_unconditional:
        if not given:
            return []
        return [f"{', '.join(given)}: nothing is drawn without validation_prompt or user_prompt_library"]
    lines = []
    if "validation_negative_prompt" in where and chosen.validation_guidance <= 1:
        lines.append("validation_negative_prompt: it acts only with validation_guidance above 1")
    late = [key for key in ("validate_after_step", "validate_after_epoch") if getattr(chosen, key)]
    if late and not chosen.validation_step_interval and not chosen.validation_epoch_interval:
        lines.append(f"{', '.join(late)}: it acts only with validation_step_interval or validation_epoch_interval")
    return lines
