"""Quantise the frozen parts of a run, and say in one line each how much of them, and how far that moves their output.

In: a loaded model and plain settings. Out: the same model, changed in place, and a sentence. Nothing is measured with the
pictures of the run: a fixed small input, one forward before and one after.
"""

from __future__ import annotations

from typing import Any

import torch

from simpletuner.models import quantize
from simpletuner.models.base import Components, Facts, Family

CELLS = 8  # along a side of the fixed noise: with the caption a few seconds for 1.6B weights and Gemma on a CPU
CAPTION = "a photo of a red bicycle that leans on a white wall"


@torch.no_grad()
def velocity(family: Family, transformer: Any, facts: Facts, text: torch.Tensor) -> torch.Tensor:
    """The model's velocity for a fixed noise and these text embeds [1, n, D], float32 on the CPU."""
    device, generator = transformer.device, torch.Generator().manual_seed(0)
    latents = torch.randn(1, facts.latent_channels, CELLS, CELLS, generator=generator).to(device)
    mask = torch.ones(text.shape[:2], dtype=torch.int64, device=device)
    with torch.autocast(device.type, enabled=False):
        made = family.predict(transformer, latents, torch.tensor([900.0], device=device), text.to(device), mask)
    return made.float().cpu()


@torch.no_grad()
def embeds(parts: Components) -> torch.Tensor:
    """Text embeds of a fixed caption, float32 on the CPU."""
    device = next(parts.text_encoder.parameters()).device
    tokens = parts.tokenizer(CAPTION, return_tensors="pt").to(device)
    made: torch.Tensor = parts.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
    return made.float().cpu()


def transformer(family: Family, parts: Components, facts: Facts, settings: quantize.Settings) -> str:
    """Quantise the frozen transformer; it ends on ``settings.device``. Returns the sentence to print.

    The text encoder must be there, and not be quantised yet.
    """
    text = embeds(parts)
    exact = velocity(family, parts.transformer, facts, text)
    share = quantize.quantise(parts.transformer, family.blocks(parts.transformer), settings)
    parts.transformer.to(settings.device)
    return _sentence("base model", share, settings, exact, velocity(family, parts.transformer, facts, text))


def text_encoder(parts: Components, settings: quantize.Settings) -> str:
    """Quantise the text encoder; it ends on ``settings.device``. Returns the sentence to print."""
    exact = embeds(parts)
    share = swap_text_encoder(parts.text_encoder, settings)
    return _sentence("text encoder", share, settings, exact, embeds(parts))


def swap_text_encoder(encoder: Any, settings: quantize.Settings) -> float:
    """Quantise a text encoder without measuring it; it ends on ``settings.device``. Returns the share of its weights."""
    decoder = getattr(encoder, "model", encoder)  # some classes wrap it
    share = quantize.quantise(encoder, decoder.layers, settings)
    encoder.to(settings.device)
    return share


def _sentence(what: str, share: float, settings: quantize.Settings, exact: torch.Tensor, now: torch.Tensor) -> str:
    where = "layer by layer on the GPU" if settings.device.type == "cuda" else "on the CPU"
    return (
        f"Quantised {what}: {settings.name}, {share:.1%} of its weights, {where}; its output moved by "
        f"{quantize.relative_error(exact, now):.2%} (relative error on a fixed input)"
    )
