"""The text encoder comes back in the middle of training, for captions whose embeds are damaged in the cache.

In: the parts of a run that may have let go of it. Out: parts with the text encoder as it was when the captions were
encoded first. It is at hand for a moment only, and nothing of the run is changed by that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from simpletuner.models import quantize
from simpletuner.models.base import Components, Family, LoadSource
from simpletuner.training import quantising
from simpletuner.training.device import memory

BESIDE = 2 * 2**30  # bytes that a batch of captions takes on a GPU beside the weights, with room to spare


@contextmanager
def text_encoder(
    family: Family, source: LoadSource, parts: Components, settings: quantize.Settings | None, device: torch.device
) -> Iterator[Components]:
    """Text encoder and tokenizer alone.

    Args:
        family: Loads the encoder where it was let go.
        source: Where from.
        parts: Of the run; not changed. Their encoder, if they have it, is used and ends where it was.
        settings: How it was quantised, or None.
        device: Of the run. A GPU without room beside the transformer is left alone, and the CPU encodes.

    Raises:
        ModelError: The model is not there any more.
    """
    kept = parts.text_encoder
    encoder = family.text_encoder(source) if kept is None else kept
    before = next(encoder.parameters()).device
    where = device if before.type == device.type or _has_room(device, encoder) else torch.device("cpu")
    if kept is None and settings:
        on_cpu = where.type == "cpu" and quantize.PLANS[settings.name].capability is None
        settings = replace(settings, device=torch.device("cpu")) if on_cpu else settings
        quantising.swap_text_encoder(encoder, settings)
        where = where if on_cpu else device
    try:
        yield replace(parts, transformer=None, vae=None, text_encoder=encoder.to(where))
    finally:
        if kept is not None:
            kept.to(before)


def _has_room(device: torch.device, encoder: Any) -> bool:
    """Whether a module fits on a GPU beside what is there; that torch keeps freed memory to itself is not counted on."""
    size = sum(p.numel() * p.element_size() for p in encoder.parameters())
    return bool(memory(device).free > size + BESIDE)
