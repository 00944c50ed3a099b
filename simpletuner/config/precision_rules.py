"""Rules of quantised models: which combinations cannot be, and which options have nothing to act on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from simpletuner.config.optimizer_names import PACKAGES
from simpletuner.config.options import Options
from simpletuner.errors import Row
from simpletuner.wording import install


def precision_problems(options: Options) -> Iterator[Row]:
    """Combinations that are impossible, and packages that are not there."""
    for key in ("base_model_precision", "text_encoder_1_precision"):
        value = getattr(options.precision, key)
        package, extra = PACKAGES.get(value.rpartition("-")[2], ("", ""))
        impossible = (
            key == "base_model_precision" and options.model.model_type == "full"
        )  # told below: no package helps
        if package and find_spec(package) is None and not impossible:
            yield (key, value, f"it needs {package}, which is not installed", install(extra))
    base = options.precision.base_model_precision
    rest = options.precision.base_model_default_dtype
    if base != "no_change" and options.precision.mixed_precision == "no" and rest == "bf16":
        reason = "mixed_precision no makes every product in float32, and layers in bf16 cannot take part in it"
        yield ("base_model_default_dtype", rest, reason, "leave it out, or set mixed_precision to bf16")
    if base != "no_change" and options.model.model_type == "full":
        yield (
            "base_model_precision",
            base,
            "full-rank training changes the very weights that would be quantised",
            "set model_type to lora, or base_model_precision to no_change; text_encoder_1_precision works with both",
        )
    elif base != "no_change" and options.adapter.lora_type == "lycoris":
        config = options.adapter.lycoris_config
        yield from _over_quantised(config if isinstance(config, Mapping) else {})  # a bad file is told elsewhere


_NEEDS_WEIGHTS = "the base weights it needs are quantised"
_WHOLE_WEIGHTS = {  # settings that LyCORIS applies to W + ΔW, which cannot be made of quantised weights
    **dict.fromkeys(
        ("dora_wd", "weight_decompose"), (True, _NEEDS_WEIGHTS, "leave it out; use_dora (lora_type standard) works")
    ),
    "bypass_mode": (False, _NEEDS_WEIGHTS, "leave it out: it is chosen for each layer"),
}
_ROTATIONS = ("diag-oft", "boft")


def _over_quantised(config: Mapping[str, Any]) -> Iterator[Row]:
    """What a lycoris_config cannot do over a quantised base."""
    preset = config.get("apply_preset", {})
    maps = [preset.get(key, {}) for key in ("module_algo_map", "name_algo_map")]
    for entry in (config, *(entry for names in maps for entry in names.values())):
        if entry.get("algo") in _ROTATIONS:
            reason = "beside quantised weights it would turn biases too, so that its file would not fit the plain model"
            yield ("lycoris_config.algo", entry["algo"], reason, "use lokr, loha or lora")
        for key, (refused, reason, remedy) in _WHOLE_WEIGHTS.items():
            if key in entry and entry[key] is refused:
                yield (f"lycoris_config.{key}", entry[key], reason, remedy)


def precision_without_effect(options: Options, where: Mapping[str, str]) -> list[str]:
    """Sentences about options that are given while nothing is quantised."""
    precision = options.precision
    base, text = precision.base_model_precision != "no_change", precision.text_encoder_1_precision != "no_change"
    lines = []
    if "quantize_via" in where and not base and not text:
        lines.append("quantize_via: neither base_model_precision nor text_encoder_1_precision quantises anything")
    elif precision.quantize_via == "pipeline":
        lines.append("quantize_via pipeline: layers are swapped one by one after loading, as with accelerator")
    elif precision.quantize_via == "cpu" and "fp8-torchao" in (
        precision.base_model_precision,
        precision.text_encoder_1_precision,
    ):
        lines.append("quantize_via cpu: fp8-torchao works on the GPU alone, and is quantised there")
    if "base_model_default_dtype" in where and precision.base_model_default_dtype and not base:
        lines.append("base_model_default_dtype: it acts only with base_model_precision")
    return lines
