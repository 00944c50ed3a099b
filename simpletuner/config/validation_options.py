"""Options of validation pictures and of held-out loss; a part of ``options``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from simpletuner.config.section import Positive, Section
from simpletuner.config.values import parse_library, parse_names, parse_resolutions

Count = Annotated[int, Field(ge=0)]


def _one_spelling(value: Any) -> Any:
    """flow-match, flow_matching and flow-match-euler are flow_match."""
    word = str(value).strip().lower().replace("-", "_")
    return "flow_match" if word in ("flow_match", "flow_matching", "flow_match_euler") else value


_Named = Literal["flow_match", "dpm++", "unipc"]
SAMPLERS: tuple[str, ...] = get_args(_Named)
Sampler = Annotated[_Named, BeforeValidator(_one_spelling)]


class ValidationOptions(Section):
    """Validation pictures."""

    validation_disable: bool = Field(False, description="Draw nothing.")
    validation_prompt: str | None = Field(None, description="Main prompt.")
    user_prompt_library: Path | None = Field(
        None, description="JSON file: nickname → prompt, or → {prompt, adapter_strength}."
    )
    validation_prompt_library: Annotated[bool, BeforeValidator(parse_library)] = Field(
        False, description="Draw the built-in prompts as well: twenty of many kinds, to see what is forgotten."
    )
    validation_disable_unconditional: bool = Field(
        True, description="false draws the empty prompt as well, as unconditional."
    )
    validation_negative_prompt: str = Field("", description="Negative prompt.")
    validation_guidance: Annotated[float, Field(ge=0.0)] = Field(4.5, description="Guidance; 1 or less is off.")
    validation_num_inference_steps: Positive = Field(20, description="Sampler steps.")
    validation_noise_scheduler: Sampler | None = Field(
        None, description="Sampler of the pictures; that of the model's own folder, which is exported in any case."
    )
    validation_resolution: Annotated[tuple[tuple[int, int], ...], BeforeValidator(parse_resolutions)] = Field(
        ((1024, 1024),), description="WxH, several with commas."
    )
    validation_seed: Count | None = Field(None, description="Seed of the pictures; else seed.")
    validation_randomize: bool = Field(
        False, description="Another seed for each validation, drawn from the seed and the step."
    )
    validation_step_interval: Count | None = Field(None, description="Every n steps; start and end always.")
    validation_epoch_interval: Count | None = Field(None, description="Every n epochs, at their last step.")
    validate_after_step: Count = Field(0, description="Between start and end, never before this step.")
    validate_after_epoch: Count = Field(0, description="Between start and end, never before so many epochs are done.")
    validation_on_startup: bool = Field(True, description="Also draw the base model, for the before/after grid.")
    disable_benchmark: bool = Field(
        False, description="Do not draw the base model, nor keep its pictures; validation_on_startup true still draws."
    )
    num_validation_images: Positive = Field(1, description="Pictures per prompt and size.")
    validation_batch_size: Positive = Field(
        1, description="Pictures of one size drawn at once: faster; pixels may differ by a grey level or two."
    )
    validation_time_budget: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="Seconds for one validation: the main prompt first, what is left out is first next time."
    )


class EvaluationOptions(Section):
    """Held-out loss."""

    eval_steps_interval: Count | None = Field(
        None, description="Every n steps; start and end always. Without either interval, at every checkpoint."
    )
    eval_epoch_interval: Annotated[float, Field(ge=0.0)] | None = Field(
        None, description="Every n epochs, parts of one too: 0.5 is twice an epoch."
    )
    num_eval_images: Positive | None = Field(
        None, description="At most this many held-out pictures of each dataset, of all together if pooled; all."
    )
    eval_timesteps: Annotated[int, Field(ge=1, le=1000)] = Field(
        5, description="Sigmas each picture is measured at, evenly spread; 5 are 0.1, 0.3, 0.5, 0.7 and 0.9."
    )
    eval_batch_size: Positive = Field(8, description="Pictures measured at once, whatever train_batch_size is.")
    eval_dataset_id: Annotated[tuple[str, ...] | None, BeforeValidator(parse_names)] = Field(
        None, description="Only these datasets of dataset_type eval; all."
    )
    eval_dataset_pooling: bool = Field(False, description="Several eval datasets are one, without figures of each.")
    eval_loss_disable: bool = Field(False, description="Do not measure it.")
