"""How much memory a Sana pipeline takes, from its configuration files alone: weights by count, activations by metering.

In: a LoadSource, and what a step or a picture looks like. Out: counts and bytes. No weights are loaded or made: the modules
are real, their tensors have no numbers (``models.metering``). A second or less for all of it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from simpletuner.models import load
from simpletuner.models.base import Activations, Adapt, Footprint, LoadSource, StepShape
from simpletuner.models.metering import metered, without_numbers
from simpletuner.models.sana import attention, block_forward, encoder, tiling
from simpletuner.models.sana.transformer import ACCELERATOR, KERNELS

# Compiled blocks keep 6 % more than the same operations one by one: 26.8 GiB at batch 8 and 43.8 at 16 on an H100 (1.6B).
COMPILED = 1.06
# What DC-AE takes beside its tensors (cuDNN's workspaces): 3.0 GiB measured where the meter has 2.5.
WORKSPACES = 1.2
VAE_BYTES = 4  # it always works in float32


@lru_cache(maxsize=4)
def footprint(source: LoadSource) -> Footprint:
    """Counts of weights, from shapes alone. Raises ModelError where a configuration cannot be read."""
    model = _transformer(source, 1)
    layers = int(load.config(source, source.transformer_subfolder)["num_layers"])
    block = _count(model.transformer_blocks)
    matrices = [m.weight for m in model.transformer_blocks.modules() if _is_matrix(m)]
    vae = _vae(source)
    gemma = load.config(source, "text_encoder")
    text, quantisable = _text_weights(gemma)
    return Footprint(
        blocks=layers,
        block_weights=block,
        other_weights=_count(model) - block,
        block_matrices=sum(w.numel() for w in matrices),
        largest_matrix=max(w.numel() for w in matrices),
        token_width=int(model.config.num_attention_heads * model.config.attention_head_dim),
        vae_weights=_count(vae),
        vae_decoder_weights=_count(vae.decoder),
        text_weights=text,
        text_matrices=quantisable,
        text_token_numbers=3 * int(gemma["intermediate_size"]) + 8 * int(gemma["hidden_size"]),
        text_heads=int(gemma["num_attention_heads"]),
    )


def activations(source: LoadSource, shape: StepShape, adapt: Adapt | None = None) -> Activations:
    """What one step keeps for backward and needs on the way.

    Args:
        source: Names the transformer's configuration.
        shape: Of the batch, with the blocks' forward and the dtypes.
        adapt: Puts the adapter on a transformer and returns it; None where all weights are trained.
    """
    one, two = (_walk(source, shape, adapt, layers) for layers in (1, 2))
    block = two[0] - one[0]
    factor = COMPILED if shape.compiled else 1.0
    return Activations(
        block=round(block * factor),
        outside=max(0, one[0] - block),
        transient=max(one[1], 0),
        trained_block=two[2] - one[2],
        trained_outside=2 * one[2] - two[2],
    )


def _walk(source: LoadSource, shape: StepShape, adapt: Adapt | None, layers: int) -> tuple[int, int, int]:
    """Bytes kept after forward, the most beside them in backward, and the count of trained weights."""
    model = _transformer(source, layers)
    nn.Module.to(model, shape.weights)  # diffusers would say what does not matter here
    model.requires_grad_(adapt is None).train()
    trained = list(model.parameters())
    if adapt is not None:
        adapter = adapt(model)
        trained = adapter.parameters
    if shape.forward != "diffusers":
        ways = KERNELS if shape.forward == "fast" else ACCELERATOR
        block_forward.use_plain(model, ways)
    count = sum(p.numel() for p in trained)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    without_numbers(model, fake)
    with fake:
        latents = torch.empty(shape.batch, model.config.in_channels, *shape.latents, dtype=shape.weights)
        text = torch.empty(shape.batch, shape.text_tokens, model.config.caption_channels, dtype=shape.weights)
        mask, times = torch.ones(shape.batch, shape.text_tokens, dtype=torch.int64), torch.empty(shape.batch)
    with (
        metered(model, fake, (latents, text)) as meter,
        torch.autocast("cpu", shape.autocast, shape.autocast is not None),
    ):
        result = model(
            latents, encoder_hidden_states=text, encoder_attention_mask=mask, timestep=times, return_dict=False
        )
        loss = result[0].float().square().mean()
        kept = meter.live
        meter.start_peak()
        loss.backward()
    return kept, meter.peak - kept, count


@lru_cache(maxsize=8)
def vae_activations(source: LoadSource, width: int, height: int, decode: bool) -> int:
    """Bytes beside the VAE's weights for one picture of ``width`` x ``height`` pixels, by tiles if the source says so."""
    vae, fake = _vae(source), FakeTensorMode()
    stride = 2 ** (len(vae.config.encoder_block_out_channels) - 1)
    edge = tiling.TILE * stride if source.vae_tiling else max(width, height)
    without_numbers(vae, fake)
    size = min(height, edge), min(width, edge)
    with fake:
        shape = (1, 3, *size) if not decode else (1, vae.config.latent_channels, size[0] // stride, size[1] // stride)
        given = torch.empty(shape)
    with metered(vae, fake, (given,)) as meter, torch.no_grad():
        (vae.decoder if decode else vae.encoder)(given)
    whole = 3 * 3 * width * height * VAE_BYTES  # the picture, and the sum and one more of the tiles
    return round(meter.peak * WORKSPACES) + whole


def bare(source: LoadSource) -> Any:
    """The whole transformer on the meta device. Raises ModelError where its configuration cannot be read."""
    return _transformer(source, None)


def _transformer(source: LoadSource, layers: int | None) -> Any:
    """The transformer with this many blocks, None for its own number, on the meta device."""
    from diffusers import SanaTransformer2DModel

    found = load.config(source, source.transformer_subfolder)
    with torch.device("meta"):
        model = SanaTransformer2DModel.from_config({**found, **({"num_layers": layers} if layers else {})})
    attention.use_float32_sums(model)
    return model


def _vae(source: LoadSource) -> Any:
    from diffusers import AutoencoderDC

    with torch.device("meta"):
        return encoder.quicken(AutoencoderDC.from_config(load.config(source, "vae")))


def _text_weights(config: dict[str, Any]) -> tuple[int, int]:
    """All weights of Gemma-2, and those of its matrices but the embedding. Source: transformers' ``Gemma2Model``."""
    width, layers, wide = (int(config[k]) for k in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    head = int(config.get("head_dim", width // config["num_attention_heads"]))
    attention_width = head * (2 * int(config["num_attention_heads"]) + 2 * int(config["num_key_value_heads"]))
    matrices = layers * width * (attention_width + 3 * wide)
    return int(config["vocab_size"]) * width + matrices + layers * 4 * width + width, matrices


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _is_matrix(module: nn.Module) -> bool:
    """A linear layer or a 1x1 convolution: what is quantised."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)
