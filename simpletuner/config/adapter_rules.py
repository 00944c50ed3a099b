"""Rules between the options of adapters: pure functions, read by ``rules``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from simpletuner.config.options import Options
from simpletuner.errors import Row

_LYCORIS_ONLY = ("lycoris_config", "init_lokr_norm")
_FROM_FILE = ("lora_rank", "lora_alpha", "use_dora", "use_rslora", "peft_lora_target_modules", "lora_init_type")
_STANDARD_ONLY = (*_FROM_FILE, "lora_dropout")


def problems(options: Options) -> Iterator[Row]:
    """Impossible combinations, as (key, value, reason, remedy)."""
    adapter = options.adapter
    if options.model.model_type != "lora":
        if adapter.init_lora:
            reason = "an adapter is continued with model_type lora; full training would ignore it"
            yield ("init_lora", str(adapter.init_lora), reason, "merge it first (`simpletuner merge`), or remove it")
        return
    if adapter.init_lora and not adapter.init_lora.expanduser().exists():
        yield ("init_lora", str(adapter.init_lora), "there is no such file or folder", "check the path")
    if adapter.lora_type == "standard":
        if adapter.use_dora and adapter.lora_init_type in ("pissa", "olora"):
            reason = f"DoRA measures the whole weight, and {adapter.lora_init_type} moves a part of it"
            yield ("lora_init_type", adapter.lora_init_type, reason, "use lora_init_type default with use_dora")
        depthwise = [n for n in adapter.peft_lora_target_modules or () if n.endswith("conv_depth")]
        if depthwise:
            reason = "it is a depthwise convolution, one filter per channel, which has no low rank to adapt"
            yield ("peft_lora_target_modules", depthwise[0], reason, "leave it out, or use lora_type lycoris")
    elif adapter.init_lokr_norm is not None and adapter.init_lora:
        reason = "init_lora decides where the adapter starts"
        yield ("init_lokr_norm", adapter.init_lokr_norm, reason, "remove one of the two")


def without_effect(options: Options, where: Mapping[str, str]) -> list[str]:
    """Sentences about options of adapters that are given but change nothing beside the others."""
    adapter = options.adapter
    fields = type(adapter).model_fields  # a default that a wizard wrote down asks for nothing
    given = [key for key, field in fields.items() if key in where and getattr(adapter, key) != field.default]
    if options.model.model_type != "lora":
        return [f"{key}: it acts with model_type lora only" for key in given]
    if adapter.lora_type == "standard":
        lines = [f"{key}: it acts with lora_type lycoris only" for key in given if key in _LYCORIS_ONLY]
        if adapter.init_lora:
            lines += [f"{key}: it is what the file of init_lora says" for key in given if key in _FROM_FILE]
        return lines
    lines = [f"{key}: lycoris_config decides with lora_type lycoris" for key in given if key in _STANDARD_ONLY]
    if "lora_alpha" in given and "lora_rank" in where and "lora_rank" not in given:  # the two are one thought
        lines.insert(0, "lora_rank: lycoris_config decides with lora_type lycoris")
    if "lora_format" in where:
        lines.append("lora_format: LyCORIS has one layout, which ComfyUI reads as it is")
    return lines
