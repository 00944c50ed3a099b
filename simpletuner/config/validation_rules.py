"""Rules of validation pictures and held-out loss: which options have nothing to act on."""

from __future__ import annotations

from collections.abc import Mapping

from simpletuner.config.checking import Findings, nearest
from simpletuner.config.datasets import Datasets
from simpletuner.config.options import Options
from simpletuner.config.validation_options import EvaluationOptions, ValidationOptions
from simpletuner.errors import Problem

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


def check_evaluation(options: Options, datasets: Datasets, where: Mapping[str, str], findings: Findings) -> None:
    """Datasets that are named but not there, and options that are given while there is nothing to measure."""
    names = [entry.id for entry in datasets.eval]
    chosen = options.evaluation.eval_dataset_id or ()
    for name in chosen:
        if name not in names:
            reason = (
                f"there is no dataset of this id with dataset_type eval: {', '.join(names) or 'there are none at all'}"
            )
            findings.problems.append(
                Problem(where["eval_dataset_id"], "eval_dataset_id", name, reason, nearest(name, names))
            )
    given = [key for key in EvaluationOptions.model_fields if key in where and key != "eval_loss_disable"]
    if given and not chosen and not names:
        findings.notices.append(
            f"{', '.join(given)}: nothing is measured without a dataset of dataset_type eval in the dataloader file"
        )
    elif "eval_dataset_pooling" in where and options.evaluation.eval_dataset_pooling and len(chosen or names) == 1:
        findings.notices.append("eval_dataset_pooling: it acts only with several eval datasets")
