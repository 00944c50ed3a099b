"""The quickened DC-AE encoder against diffusers' own: the architecture of Sana's VAE (multi-scale attention), tiny."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.models.sana.encoder import grouped_pointwise, quicken
from simpletuner.models.sana.family import Sana

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from random_sana import vae_config


@pytest.fixture(scope="module")
def plain() -> AutoencoderDC:
    torch.manual_seed(0)
    vae = AutoencoderDC(**vae_config("tiny")).eval().requires_grad_(False)
    for parameter in vae.parameters():  # also norm weights and biases, which start as ones and zeros
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return vae


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_same_latents(plain: AutoencoderDC, layout: torch.memory_format) -> None:
    pixels = torch.rand(2, 3, 96, 160) * 2 - 1
    quick = quicken(copy.deepcopy(plain))
    expected = plain.encode(pixels).latent * plain.config.scaling_factor
    made = Sana().encode_pixels(quick, pixels.to(memory_format=layout))
    assert expected.std() > 1e-3
    assert (made - expected).norm() / expected.norm() < 1e-5
    assert made.is_contiguous()


def test_parts_are_replaced_and_weights_are_not(plain: AutoencoderDC, tmp_path: Path) -> None:
    quick = quicken(copy.deepcopy(plain))
    replaced = [name for name, module in quick.named_modules() if "forward" in vars(module)]
    assert any("to_qkv_multiscale" in name for name in replaced) and any("norm" in name for name in replaced)
    assert all(name.startswith("encoder.") for name in replaced)
    quick.save_pretrained(tmp_path)
    again = AutoencoderDC.from_pretrained(tmp_path).state_dict()
    assert {k: v.tolist() for k, v in again.items()} == {k: v.tolist() for k, v in plain.state_dict().items()}


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 4))
def test_grouped_pointwise_is_the_convolution(groups: int, inside: int, out: int, batch: int, side: int) -> None:
    generator = torch.Generator().manual_seed(groups * 1000 + inside * 100 + out * 10 + batch)
    weight = torch.randn(groups * out, inside, 1, 1, generator=generator, dtype=torch.float64)
    features = torch.randn(batch, groups * inside, side, side + 1, generator=generator, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(features, weight, groups=groups)
    torch.testing.assert_close(grouped_pointwise(weight, groups, features), expected)
