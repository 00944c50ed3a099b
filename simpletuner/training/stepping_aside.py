"""Where memory is short, the transformer leaves the GPU while a picture is decoded: its weights are the most there is.

In: the parts of a pipeline. Out: the same VAE, whose ``decode`` has the GPU nearly for itself. Costs a second or two a picture.
"""

from __future__ import annotations

from typing import Any

import torch

from simpletuner.models.base import Components


def make_decoding_lonely(parts: Components) -> None:
    """Wrap ``parts.vae.decode``. Only where nobody keeps addresses of the weights: no graphs, no fused optimizer."""
    decode, transformer = parts.vae.decode, parts.transformer

    def alone(*arguments: Any, **named: Any) -> Any:
        home = next(transformer.parameters()).device
        transformer.to("cpu")
        if home.type == "cuda":
            torch.cuda.empty_cache()
        try:
            return decode(*arguments, **named)
        finally:
            transformer.to(home)

    vars(parts.vae)["decode"] = alone
