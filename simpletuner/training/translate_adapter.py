"""Options of adapters become plain values: a part of the composition root. Pure functions."""

from __future__ import annotations

from typing import Any

from simpletuner.config.options import Options
from simpletuner.config.read import RunConfig
from simpletuner.models.adapters import LoraSettings, LycorisSettings
from simpletuner.training import adapting


def settings(options: Options) -> LoraSettings | LycorisSettings | None:
    """What adapter is trained, or None for all weights."""
    adapter = options.adapter
    if options.model.model_type != "lora":
        return None
    if adapter.lora_type == "lycoris":
        assert isinstance(adapter.lycoris_config, dict)  # config.read put the file's content here
        return LycorisSettings(adapter.lycoris_config, adapter.init_lokr_norm)
    return LoraSettings(
        rank=adapter.lora_rank,
        alpha=adapter.lora_alpha or float(adapter.lora_rank),
        dropout=adapter.lora_dropout,
        dora=adapter.use_dora,
        rslora=adapter.use_rslora,
        init=adapter.lora_init_type,
        targets=adapter.peft_lora_target_modules,
    )


def identity(options: Options) -> dict[str, Any]:
    """What of an adapter may change on resume and shapes the result; what may not is ``Adapter.shape``."""
    config = options.adapter.lycoris_config
    multiplier = config.get("multiplier") if isinstance(config, dict) else None
    return {"lora_dropout": options.adapter.lora_dropout, "lycoris_config.multiplier": multiplier}


def about(config: RunConfig) -> dict[str, str]:
    """Metadata of the adapter's files."""
    words = [entry.instance_prompt for entry in config.datasets.train if entry.instance_prompt]
    flat = {word for prompt in words for word in ([prompt] if isinstance(prompt, str) else prompt)}
    return adapting.about(config.options.model.pretrained_model_name_or_path, sorted(flat))
