"""Rules of quantised models: which combinations cannot be, and which options have nothing to act on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from simpletuner.config.noise_rules import Row
from simpletuner.config.options import Options


def precision_problems(options: Options) -> Iterator[Row]:
    """Combinations that are impossible."""
    base = options.precision.base_model_precision
    if base != "no_change" and options.model.model_type == "full":
        yield (
            "base_model_precision",
            base,
            "full-rank training changes the very weights that would be quantised",
            "set model_type to lora, or base_model_precision to no_change; text_encoder_1_precision works with both",
        )


def precision_without_effect(options: Options, where: Mapping[str, str]) -> list[str]:
    """Sentences about options that are given while nothing is quantised."""
    precision = options.precision
    base, text = precision.base_model_precision != "no_change", precision.text_encoder_1_precision != "no_change"
    lines = []
    if "quantize_via" in where and not base and not text:
        lines.append("quantize_via: neither base_model_precision nor text_encoder_1_precision quantises anything")
    elif precision.quantize_via == "pipeline":
        lines.append("quantize_via pipeline: layers are swapped one by one after loading, as with accelerator")
    if "base_model_default_dtype" in where and precision.base_model_default_dtype and not base:
        lines.append("base_model_default_dtype: it acts only with base_model_precision")
    return lines
