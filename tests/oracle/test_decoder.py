"""Validation of an adapter draws under autocast; what the VAE does there stays float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC

from simpletuner.models.base import LoadSource
from simpletuner.models.sana.family import Sana


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_latents_are_decoded_in_float32_whatever_autocast_says(pocket: Path, dtype: torch.dtype) -> None:
    vae = Sana().autoencoder(LoadSource(str(pocket / "model")))
    plain = AutoencoderDC.from_pretrained(pocket / "model" / "vae").eval()
    latents = torch.randn(1, plain.config.latent_channels, 4, 4, generator=torch.Generator().manual_seed(1))
    expected = plain.decode(latents, return_dict=False)[0]
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(vae.decode(latents, return_dict=False)[0], expected)
        assert not torch.equal(plain.decode(latents, return_dict=False)[0], expected), "autocast would act"
