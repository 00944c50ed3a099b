"""The largest way of training Sana 1.6B that a card has memory for, as `simpletuner doctor` says it.

In: a card. Out: words. By the program's own estimator and the published configuration; no hub is asked, nothing is loaded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simpletuner.cli.configuring import content, estimates
from simpletuner.cli.configuring.proposal import Machine
from simpletuner.data.types import Size
from simpletuner.models import imports
from simpletuner.models.base import LoadSource
from simpletuner.models.sana import published

_FLAVOUR, _EDGE = "sana1.0-1.6b-1024", 1024
_LORA = {"model_type": "lora", "peft_lora_target_modules": ["all"]}
_NF4 = {"base_model_precision": "nf4-bnb", "text_encoder_1_precision": "nf4-bnb", "quantize_via": "cpu"}
_RELEASED = {"optimizer_release_gradients": True, "grad_clip_method": "value"}
# From the most memory to the least; a card that has room for one has room for those after it.
WAYS: Mapping[str, Mapping[str, Any]] = {
    "in full rank or with a LoRA": {"model_type": "full"},
    "with a LoRA, or in full rank with ao-adamw8bit and released gradients": {
        **{"model_type": "full", "optimizer": "ao-adamw8bit"},
        **_RELEASED,
    },
    "with a LoRA, not in full rank": _LORA,
    "with a LoRA over nf4 alone, text encoder in nf4 too": {**_LORA, **_NF4},
}


def largest(card: Machine) -> str:
    """Words after "Sana 1.6B", "" if it fits in no way; with ``memory`` auto, in batches of 1 at 1024 px."""
    imports.libraries()
    with tempfile.TemporaryDirectory() as name:
        aside = Path(name)
        folder = str(published.write(_FLAVOUR, aside / "model"))
        model = estimates.Model(folder, estimates.SANA.peek(LoadSource(folder)))
        for words, options in WAYS.items():
            config = {
                "pretrained_model_name_or_path": folder,
                "memory": "auto",
                "mixed_precision": "bf16" if card.bf16 else "no",
                "max_train_steps": 1,
                "train_batch_size": 1,
                "validation_prompt": "a fox",
                "validation_resolution": f"{_EDGE}x{_EDGE}",
                "resolution": _EDGE,
                "data_backend_config": content.DATASETS,
                **options,
            }
            entries = [{"id": "pictures", "instance_data_dir": str(aside)}]
            files = {content.CONFIG: config, content.DATASETS: entries}
            asked = estimates.subject(estimates.load_from(files, aside), model, [Size(_EDGE, _EDGE)] * 4)
            if estimates.fits(asked, card):
                return words
    return ""
