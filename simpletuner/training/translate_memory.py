"""Options become a plan of memory: the part of the composition root that estimates a run, and fits it to a budget.

In: a configuration, the model's facts and the pictures found. Out: plain values. No weights are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from simpletuner.config.optimizer_names import SCHEDULE_FREE
from simpletuner.config.options import Options
from simpletuner.config.read import RunConfig
from simpletuner.data.encode import TEXT_BATCH
from simpletuner.data.types import Size
from simpletuner.models import adapters, quantize
from simpletuner.models.adapters import LoraSettings, LycorisSettings
from simpletuner.models.base import Adapt, Facts, Family, Forward, LoadSource, StepShape, TextSettings
from simpletuner.models.freezing import bias_and_norms_only
from simpletuner.models.quantize import PLANS
from simpletuner.training import (
    fast_path,
    memory_estimate,
    optimizers,
    prepare,
    step_times,
    translate_adapter,
    translate_precision,
)
from simpletuner.training.memory_estimate import Caching, Learning, Plan, quantised_bytes
from simpletuner.training.optimizer_memory import state_bytes
from simpletuner.training.precision import Precision, choose, choose_for_adapter

LETTERS = 4  # of English in a token, about


@dataclass(frozen=True, slots=True)
class Subject:
    """What is estimated.

    Attributes:
        config: The configuration.
        family: Knows the model.
        facts: Of the model.
        source: Where its configuration files are; how the VAE works.
        precision: Dtypes in force.
        text: How captions become tokens.
        device: Where training runs. Without a GPU the estimate is for an NVIDIA card with the fast way.
        found: All datasets, held-out ones too.
        obstacle: Why the fast way cannot run on that device, or None, also where no device is known.
    """

    config: RunConfig
    family: Family
    facts: Facts
    source: LoadSource
    precision: Precision
    text: TextSettings
    device: torch.device
    found: Sequence[prepare.Found]
    obstacle: str | None = None

    @property
    def options(self) -> Options:
        """The options."""
        return self.config.options

    @property
    def forward(self) -> Forward:
        """Of the blocks, as ``fast_path.put_on`` will decide."""
        wanted = self.options.precision.transformer_forward
        obstacle = self.obstacle or fast_path.not_in_bf16(self.precision)
        if wanted == "auto":
            return "diffusers" if obstacle else "fast"
        return "plain" if wanted == "fast" and obstacle else wanted


def plan_of(subject: Subject) -> Plan:
    """The numbers of a run. Raises ModelError where the model's configuration cannot be read."""
    options, footprint = subject.options, subject.family.footprint(subject.source)
    full, width = options.model.model_type == "full", _bytes(subject.precision.weights)
    shape = step_shape(subject)
    base = options.precision.base_model_precision
    base_width = _bytes(subject.precision.base or subject.precision.weights)
    matrices = 0 if base == "no_change" else footprint.blocks * footprint.block_matrices
    bits = PLANS[base].bits if matrices else 8
    made = subject.family.activations(subject.source, shape, _adapt(options))
    trained = footprint.blocks * made.trained_block + made.trained_outside
    frozen = quantised_bytes(bits, matrices, footprint.weights - matrices, base_width)
    if full:  # bitfit leaves most of them frozen
        frozen = (footprint.weights - trained) * width
    rows, columns = shape.latents
    tokens = subject.facts.tokens(rows, columns)
    return Plan(
        footprint=footprint,
        activations=made,
        batch_bytes=shape.batch * tokens * footprint.token_width * _bytes(shape.autocast or shape.weights),
        learning=_learning(options, width),
        frozen=frozen,
        scratch=footprint.largest_matrix * 2 if matrices else 0,
        accumulates=options.training.gradient_accumulation_steps > 1,
        interval=interval(options),
        graph=replays(subject),
        caching=_caching(subject, base != "no_change" and options.precision.quantize_via != "cpu"),
        decoding=decoding_bytes(subject),
    )


def timed(subject: Subject, plan: Plan) -> step_times.Step:
    """A step of a plan in the terms of the table of times."""
    shape, counts = step_shape(subject), plan.footprint
    tokens = subject.facts.tokens(*shape.latents)
    exact = shape.weights == torch.float32 and shape.autocast is None
    return step_times.Step(
        shape.forward, plan.graph, shape.batch, tokens, counts.weights, counts.blocks, plan.interval, exact
    )


def interval(options: Options) -> int:
    """Every n-th block is recomputed; 0 for none."""
    precision = options.precision
    return precision.gradient_checkpointing_interval if precision.gradient_checkpointing else 0


def largest(found: Sequence[prepare.Found]) -> Size | None:
    """The largest bucket, None without pictures."""
    sizes = [p.placement.bucket for item in found for p in item.placed]
    return max(sizes, key=lambda size: size.width * size.height, default=None)


def step_shape(subject: Subject) -> StepShape:
    """The largest batch of the run."""
    facts, options = subject.facts, subject.options
    size = largest(subject.found) or Size(facts.native_resolution, facts.native_resolution)
    forward = subject.forward
    batch = options.training.train_batch_size
    multiple = fast_path.text_multiple(forward, torch.device("cuda"), batch)  # of which alone "fast" can be
    return StepShape(
        batch=batch,
        latents=(size.height // facts.stride, size.width // facts.stride),
        text_tokens=subject.text.max_tokens + -subject.text.max_tokens % multiple,
        forward=forward,
        compiled=forward == "fast" and options.model.model_type == "full",
        weights=subject.precision.base or subject.precision.weights,
        autocast=subject.precision.autocast,
    )


def _adapt(options: Options) -> Adapt | None:
    """What puts the adapter, or bitfit's choice, on a transformer without numbers."""
    settings = translate_adapter.settings(options)
    if settings is not None:  # its start needs numbers, and changes nothing of its size
        if isinstance(settings, LoraSettings):
            plain: LoraSettings | LycorisSettings = replace(settings, init="default")
        else:
            plain = replace(settings, lokr_norm=None)
        return lambda transformer: adapters.put_on(transformer, plain, 0)
    if options.training.layer_freeze_strategy == "bitfit":
        return _bitfit
    return None


@dataclass(frozen=True, slots=True)
class _Chosen:
    parameters: list[torch.nn.Parameter]


def _bitfit(transformer: Any) -> _Chosen:
    bias_and_norms_only(transformer)
    return _Chosen([p for p in transformer.parameters() if p.requires_grad])


def _learning(options: Options, width: int) -> Learning:
    training, ema = options.training, options.ema
    on_gpu = ema.use_ema and ema.ema_device != "cpu" and not ema.ema_cpu_only
    sums = training.gradient_accumulation_steps > 2 and training.gradient_precision == "fp32" and width == 2
    return Learning(
        weight=width,
        state=state_bytes(training.optimizer, width),
        ema=4.0 if on_gpu else 0.0,
        sums=4.0 if sums else 0.0,
        released=training.releases_gradients(),
        averaged=(ema.use_ema and ema.ema_validation != "none") or training.optimizer in SCHEDULE_FREE,
    )


def _caching(subject: Subject, base_waits: bool) -> Caching:
    options, size = subject.options, largest(subject.found)
    text, width = options.precision.text_encoder_1_precision, _bytes(subject.precision.cache)
    model = subject.family.footprint(subject.source)
    held = 0 if text == "no_change" else model.text_matrices
    text_bytes = quantised_bytes(PLANS[text].bits if held else 8, held, model.text_weights - held, width)
    pictures = subject.family.vae_activations(subject.source, size.width, size.height, False) if size else 0
    instruction = sum(map(len, subject.text.instruction)) // LETTERS
    ahead = [item for item in subject.found if item.source.caching == "ahead" and item.placed]
    return Caching(
        pictures=pictures,
        vae_batch=max((min(item.source.encode_batch, len(item.placed)) for item in ahead), default=0),
        text_bytes=text_bytes / model.text_weights,
        text_tokens=instruction + subject.text.max_tokens,
        captions=TEXT_BATCH,
        text_width=width,
        base_waits=base_waits,
        vae_stays=len(ahead) < sum(bool(item.placed) for item in subject.found),
        text_stays=subject.config.datasets.text_caching != "ahead",
    )


def decoding_bytes(subject: Subject) -> int:
    """Beside the decoder's weights, for the validation pictures that are decoded together."""
    options = subject.options.validation
    if options.validation_disable or not subject.config.prompts:
        return 0
    together = 1 if subject.options.precision.vae_enable_slicing else options.validation_batch_size
    return together * max(
        subject.family.vae_activations(subject.source, width, height, True)
        for width, height in options.validation_resolution
    )


def replays(subject: Subject) -> bool:
    """Whether steps become CUDA graphs, as ``fast_path.can_replay`` will decide."""
    training, adapter = subject.options.training, subject.options.model.model_type == "lora"
    settings = translate_adapter.settings(subject.options)
    half = not adapter and subject.precision.weights is torch.bfloat16  # adapters are float32
    guarded = fast_path.guards(training.optimizer, training.optimizer_arguments(), half)
    return (
        subject.forward == "fast"
        and (guarded or (adapter and not training.releases_gradients()))
        and training.gradient_accumulation_steps == 1
        and not ((settings and settings.draws) or subject.precision.scale_gradients)
        and quantize.captured(subject.options.precision.base_model_precision)
    )


def may_step_aside(options: Options) -> bool:
    """Whether the transformer's weights may leave the GPU and come back: they are ordinary tensors."""
    return options.precision.base_model_precision == "no_change"


def within(subject: Subject, plan: Plan, budget: float) -> memory_estimate.Estimate:
    """The estimate of a plan; the transformer steps aside for the decoder where it has to and may."""
    found = memory_estimate.estimate(plan)
    if found.phases.get("validation", 0.0) > budget and may_step_aside(subject.options):
        return memory_estimate.estimate(replace(plan, aside=True))
    return found


def _bytes(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()


def estimate(subject: Subject, budget: float) -> memory_estimate.Estimate:
    """The run's memory by phase, with this many bytes to be had."""
    return within(subject, plan_of(subject), budget)


def adapter_precision(options: Options) -> Precision:
    """Dtypes of an adapter's run."""
    chosen = choose_for_adapter(options.precision.mixed_precision)
    return replace(chosen, base=translate_precision.default_dtype(options) or chosen.base)


def precision_of(options: Options) -> Precision:
    """The dtypes in force."""
    if options.model.model_type == "lora":
        return adapter_precision(options)
    training = options.training
    safe = optimizers.low_precision_safe(training.optimizer, training.optimizer_arguments())
    return choose(options.precision.mixed_precision, safe)
