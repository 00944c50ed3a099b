"""Adapters over a quantised base: every layer is trained, and the file is one of the plain model's, where it does the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SanaPipeline
from safetensors.torch import load_file
from small_sana import base, velocity

from simpletuner.models import adapters, quantize
from simpletuner.models.adapters import WEIGHTS, LoraSettings, LycorisSettings
from simpletuner.models.quantize import Settings, relative_error

SIDES = {"target_module": ["Attention", "GLUMBConv"]}


def lycoris(algo: str, **more: Any) -> LycorisSettings:
    config = {"algo": algo, "multiplier": 1.0, "linear_dim": 3, "linear_alpha": 0.75, "apply_preset": SIDES}
    return LycorisSettings({**config, **more})


BY_NAME = {"use_fnmatch": True, "target_name": ["*.ff.conv_point", "*attn2.to_q"]}
KINDS = {
    "lora": LoraSettings(3, 1.5, targets=("all",)),
    "lora-all-linear": LoraSettings(3, 1.5, targets=("all-linear",)),
    "dora": LoraSettings(3, 1.5, dora=True, targets=("all",)),
    "pissa": LoraSettings(3, 1.5, init="pissa", targets=("to_q", "conv_point")),
    "lokr": lycoris("lokr", factor=4),
    "lokr-full": lycoris("lokr", factor=4, full_matrix=True),
    "lokr-by-name": lycoris("lokr", factor=4, apply_preset=BY_NAME),
    "loha": lycoris("loha"),
    "locon": lycoris("locon", use_scalar=True),
    "glora": lycoris("glora", apply_preset={"use_fnmatch": True, "target_name": ["*.to_q", "*.conv_inverted"]}),
}


@pytest.mark.parametrize("precision", ["nf4-bnb", "int8dq-torchao"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_and_fits_the_plain_model(kind: str, precision: str, tmp_path: Path) -> None:
    plain, model = base(), base()
    settings = Settings(precision, torch.device("cpu"), torch.float32)
    quantize.quantise(model, model.transformer_blocks, settings)
    weights = quantize.weights(model)
    assert weights == sum(p.numel() for p in plain.parameters())
    with torch.no_grad():
        drift = velocity(model) - velocity(plain)
        before = velocity(model)
    adapter = adapters.put_on(model, KINDS[kind], seed=1)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adapter.parameters:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    moved = velocity(model)
    assert relative_error(before, moved) > 1e-4
    moved.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters)
    adapter.save(tmp_path / "over quantised")

    other = adapters.put_on(plain, KINDS[kind], seed=2)
    other.save(tmp_path / "over plain")
    mine, theirs = (load_file(tmp_path / f"over {which}" / WEIGHTS) for which in ("quantised", "plain"))
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}
    adapters.load(other, other.read(tmp_path / "over quantised"))
    with torch.no_grad():
        difference = velocity(plain) - moved
    assert difference.norm() < 1.5 * drift.norm() + 1e-4 * moved.norm(), "it does more than the base's own drift"
    adapters.load(adapter, adapter.read(tmp_path / "over quantised"))
    with torch.no_grad():
        assert torch.equal(velocity(model), moved.detach())


@pytest.mark.parametrize("kind", ["lora", "lora-all-linear"])
def test_plain_diffusers_loads_the_file(kind: str, tmp_path: Path) -> None:
    model = base()
    quantize.quantise(model, model.transformer_blocks, Settings("int8-torchao", torch.device("cpu"), torch.float32))
    adapter = adapters.put_on(model, KINDS[kind], seed=1)
    adapter.save(tmp_path)
    reference = base()
    tensors, metadata = SanaPipeline.lora_state_dict(tmp_path, return_lora_metadata=True)
    SanaPipeline.load_lora_into_transformer(tensors, reference, metadata=metadata)
    loaded = {n.replace(".default_0", ""): p for n, p in reference.named_parameters() if ".lora_" in n}
    assert len(loaded) == len(adapter.parameters)
