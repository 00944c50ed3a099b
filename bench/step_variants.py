"""Ways of making a training step that bench/step.py compares: a model built, and its blocks arranged to run that way."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
TOKENS = {"pocket": 32, "tiny": 300, "1.6b": 300}


@dataclass(frozen=True, slots=True)
class Variant:
    """One way.

    Attributes:
        what: For the table.
        plain: Our form of the blocks instead of diffusers' own.
        ways: Of making its products: ``cpu``, ``accelerator``, ``apart`` (q, k and v by themselves) or "" for the device's.
        compiled: Every block through torch.compile; one compilation serves all, and text is padded to 256 tokens.
        fast: The program's fast way: hand-written kernels, and text padded to a multiple of 64.
        graph: The step is replayed as a CUDA graph.
        float32: Float32 weights under bf16 autocast, torch's fused AdamW and padded text, instead of bf16 weights.
    """

    what: str
    plain: bool = False
    ways: str = ""
    compiled: bool = False
    float32: bool = False
    fast: bool = False
    graph: bool = False

    @property
    def theirs(self) -> bool:
        """Diffusers' own forward: what is compared with, not what is checked."""
        return not (self.plain or self.fast)


VARIANTS = {
    "amp": Variant("diffusers, float32 weights, autocast, padded text", float32=True),
    "diffusers": Variant("diffusers, eager"),
    "diffusers-compiled": Variant("diffusers, each block compiled", compiled=True),
    "ours": Variant("ours, eager (transformer_forward plain)", plain=True),
    "ours-compiled": Variant("ours, each block compiled", plain=True, compiled=True),
    "ours-apart": Variant("ours, compiled, q/k/v apart", plain=True, ways="apart", compiled=True),
    "fast": Variant("ours, fast: kernels, compiled, one graph", plain=True, compiled=True, fast=True, graph=True),
    "fast-launched": Variant("ours, fast, without the graph", plain=True, compiled=True, fast=True),
    "fast-eager": Variant("ours, kernels alone", plain=True, fast=True),
    "ours-products": Variant("ours, products as on a GPU", plain=True, ways="accelerator"),
}


def build(size: str, layers: int = 0, device: str = "cpu") -> Any:
    """The transformer in float32, with random weights but for the pocket's."""
    from diffusers import SanaTransformer2DModel
    from random_sana import transformer_config

    from simpletuner.models.sana import attention

    torch.manual_seed(0)
    if size == "pocket":
        folder = ROOT / "simpletuner" / "pocket" / "model"
        model = SanaTransformer2DModel.from_pretrained(folder, subfolder="transformer").to(device)
    else:
        config = transformer_config(size)
        with torch.device(device):
            model = SanaTransformer2DModel(**{**config, "num_layers": layers or config["num_layers"]})
    attention.use_float32_sums(model)
    return model.train()


def arrange(model: Any, variant: Variant) -> None:
    """Let the model's blocks run this way."""
    from simpletuner.models.sana import block_forward
    from simpletuner.models.sana import transformer as ours

    block_forward.use_diffusers(model)
    for block in model.transformer_blocks:
        block._compiled_call_impl = None
    if variant.compiled:
        import torch._inductor.config as inductor

        inductor.comprehensive_padding = False  # else rows of 5600 are padded to 5632 and copied back
        torch._dynamo.config.recompile_limit = 64
    if variant.plain:
        ways = {"cpu": ours.CPU, "accelerator": ours.ACCELERATOR, "apart": replace(ours.ACCELERATOR, joined=False)}
        ways["fast"] = ours.KERNELS
        run = torch.compile(ours.run_block, dynamic=False) if variant.compiled else ours.run_block
        run = block_forward.compiled_block() if variant.fast and variant.compiled else run
        obstacle = block_forward.use_plain(model, ways.get("fast" if variant.fast else variant.ways), run)
        assert obstacle is None, obstacle
    elif variant.compiled:
        for block in model.transformer_blocks:
            block.compile(dynamic=False)
