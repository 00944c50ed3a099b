"""Which layers an adapter is put on: names from the user are matched with the modules that exist.

In: a transformer and names. Out: full module names. A name that matches nothing is an error that lists what exists.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from simpletuner.errors import ModelError
from simpletuner.models.linears import is_inside, published

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("conv_inverted", "conv_point")
ALL = "all"
ALL_LINEAR = "all-linear"


def generic(name: str) -> str:
    """A module's name with ``*`` for block numbers: ``transformer_blocks.3.attn1.to_q`` → ``transformer_blocks.*.…``."""
    return re.sub(r"(?<=_blocks)\.\d+(?=\.|$)", ".*", name)


def summary(names: Sequence[str]) -> str:
    """Adapted layers, grouped over the blocks: ``attn1.to_q ×20, attn1.to_k ×20``."""
    groups = Counter(generic(published(name)).rpartition(".*.")[2] for name in names)
    return ", ".join(f"{name} ×{count}" for name, count in groups.items())


def fingerprint(names: Sequence[str]) -> str:
    """``summary``, and a digest that tells which blocks they are in."""
    digest = hashlib.sha256("\n".join(sorted(map(published, names))).encode()).hexdigest()[:8]
    return f"{summary(names)} ({digest})"


def layers_of(transformer: nn.Module) -> dict[str, str]:
    """Layers with a weight matrix or kernel: full name → class name."""
    found = {}
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
            found[name] = f"{type(module).__name__}{', depthwise' if depthwise else ''}"
    return found


def listing(transformer: nn.Module) -> str:
    """All layers, grouped over the blocks: ``attn1.to_q (Linear) ×20``."""
    layers = layers_of(transformer).items()
    groups = Counter((generic(published(name)).rpartition(".*.")[2], kind) for name, kind in layers)
    return ", ".join(f"{name} ({kind}) ×{count}" for (name, kind), count in groups.items())


def classes(transformer: nn.Module) -> str:
    """Classes of modules that hold such layers, with how many there are: ``Attention ×40, GLUMBConv ×20``."""
    plain = (nn.Linear, nn.Conv2d, nn.ModuleList)
    holders = Counter(
        type(module).__name__
        for name, module in transformer.named_modules()
        if name
        and not isinstance(module, plain)
        and any(isinstance(m, nn.Linear | nn.Conv2d) for m in module.modules())
    )
    return ", ".join(f"{name} ×{count}" for name, count in holders.items())


def _means(pattern: str, name: str) -> bool:
    return any(n == pattern or n.endswith("." + pattern) for n in (name, published(name)))


def resolve(transformer: Any, wanted: Sequence[str] | None) -> list[str]:
    """Full names of the layers that ``wanted`` means, in the model's order.

    Args:
        transformer: The model, without an adapter.
        wanted: Ends of module names (``to_q``, ``attn2.to_q``), full names, ``all`` or ``all-linear``; None for the
            four projections of both attentions.

    Raises:
        ModelError: A name matches nothing, or a depthwise convolution.
    """
    layers = layers_of(transformer)
    patterns: list[str] = []
    for name in wanted or ATTENTION:
        patterns += (*ATTENTION, *FEED_FORWARD) if name == ALL else (name,)
    chosen: set[str] = set()
    unmatched = []
    for pattern in patterns:
        if pattern == ALL_LINEAR:
            found = {n for n in layers if isinstance(transformer.get_submodule(n), nn.Linear) and not is_inside(n)}
        else:
            found = {n for n in layers if _means(pattern, n)}
        chosen |= found
        if not found:
            unmatched.append(pattern)
    if unmatched:
        raise ModelError(
            f"peft_lora_target_modules: {', '.join(map(repr, unmatched))} matches no layer of this model. "
            f"What to do: choose among {listing(transformer)}; or write {ALL!r}."
        )
    depthwise = sorted({generic(n) for n in chosen if layers[n].endswith("depthwise")})
    if depthwise:
        raise ModelError(
            f"peft_lora_target_modules: {', '.join(depthwise)} is a depthwise convolution, which standard LoRA cannot "
            "adapt (one filter per channel has no low rank). What to do: leave it out, or use lora_type lycoris."
        )
    return [name for name in layers if name in chosen]
