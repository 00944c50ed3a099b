"""What latents are kept under: the encoder that made them, and not where its files lie."""

import shutil
from pathlib import Path

import torch
from conftest import POCKET
from diffusers import AutoencoderDC

from simpletuner.training.cache_prints import of_latents


def test_a_model_that_was_moved_or_copied_has_its_latents_still(tmp_path: Path) -> None:
    here, there = POCKET / "model" / "vae", tmp_path / "elsewhere"
    shutil.copytree(here, there)
    prints = [of_latents(AutoencoderDC.from_pretrained(folder), torch.bfloat16, "") for folder in (here, there)]
    assert prints[0] == prints[1]

    vae = AutoencoderDC.from_pretrained(here)
    others = [of_latents(vae, torch.float32, ""), of_latents(vae, torch.bfloat16, "tiles")]
    vae.register_to_config(scaling_factor=0.5)
    others.append(of_latents(vae, torch.bfloat16, ""))
    with torch.no_grad():
        next(vae.parameters()).view(-1)[0] += 1
    others.append(of_latents(vae, torch.bfloat16, ""))
    assert len({prints[0], *others}) == 5
