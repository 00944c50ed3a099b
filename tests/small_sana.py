"""A real SanaTransformer2DModel with random weights that runs in milliseconds, and one fixed question to it."""

from __future__ import annotations

from typing import Any

import torch

CHANNELS, CAPTION = 4, 12


def base() -> Any:
    """Two blocks, 16 wide; always the same weights."""
    from diffusers import SanaTransformer2DModel

    from simpletuner.models.sana.attention import use_float32_sums

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        transformer = SanaTransformer2DModel(
            in_channels=CHANNELS, out_channels=CHANNELS, num_attention_heads=2, attention_head_dim=8, num_layers=2,
            num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=CAPTION,
            mlp_ratio=2.0, sample_size=4, patch_size=1,
        )  # fmt: skip
    use_float32_sums(transformer)
    return transformer.eval()


def velocity(transformer: Any) -> torch.Tensor:
    """Its answer for two pictures, [2, C, 4, 4]."""
    generator = torch.Generator().manual_seed(6)
    latents = torch.randn(2, CHANNELS, 4, 4, generator=generator)
    text = torch.randn(2, 5, CAPTION, generator=generator)
    dtype = transformer.dtype
    result: torch.Tensor = transformer(
        latents.to(dtype),
        encoder_hidden_states=text.to(dtype),
        encoder_attention_mask=torch.ones(2, 5),
        timestep=torch.tensor([100.0, 800.0]),
        return_dict=False,
    )[0]
    return result
