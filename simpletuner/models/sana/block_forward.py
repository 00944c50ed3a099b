"""The blocks' forward in training: ours put in the place of diffusers', and taken away again.

In: a SanaTransformer2DModel. Out: the same object whose blocks, in training mode, run ``transformer.run_block``. Outside the
blocks, and in eval mode, everything is diffusers' own, to the last bit: so validation pictures are those of the exported
folder. State-dict keys, saving and configuration are diffusers' in either case.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from simpletuner.models.sana import joined, stream
from simpletuner.models.sana.attention import LinearAttention
from simpletuner.models.sana.transformer import ACCELERATOR, CPU, Ways, is_bare, is_plain, run_block, untouched


class BlockForward:
    """Stands for a block's ``forward``, with the arguments diffusers' model gives it."""

    def __init__(self, transformer: Any, index: int, ways: Ways | None, run: Callable[..., Any]) -> None:
        """For block number ``index`` by ``run_block``, compiled or not; in these ways, or in those of the device it is on."""
        self.transformer = transformer
        self.index = index
        self.ways = ways
        self.run = run

    def __call__(
        self,
        hidden_states: torch.Tensor | stream.Between,
        attention_mask: torch.Tensor | None,  # of self-attention: diffusers' block does not use it either
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None,
        timestep: torch.Tensor,
        height: int,
        width: int,
    ) -> torch.Tensor | stream.Between:
        """[B, N, C] → [B, N, C], either as it goes from block to block; diffusers' own in eval mode."""
        block = self.transformer.transformer_blocks[self.index]
        text, bias, grid, given = encoder_hidden_states, encoder_attention_mask, (height, width), hidden_states
        if not block.training:
            own = type(block).forward
            result: torch.Tensor = own(block, given, attention_mask, text, bias, timestep, *grid)
            return result
        ways = self.ways or (CPU if text.device.type == "cpu" else ACCELERATOR)
        if not isinstance(given, stream.Between):
            # The first block's tokens are a picture turned round: as they are, they would cost it a compilation of its own.
            if ways.kernels and (given._is_view() or not given.is_contiguous()):
                given = given.clone(memory_format=torch.contiguous_format)
            given = stream.entered(block, given, timestep, ways.kernels and is_bare(block.norm1))
        tokens, made = self.run(block, given, text, bias, grid, ways)
        following = self.following() if ways.kernels else None
        if following is None:
            return stream.gated_last(tokens, made, given.gate_ff, ways.kernels)
        return stream.crossed(following, tokens, made, given.gate_ff, timestep)

    def following(self) -> Any:
        """The next block, if it takes ``Between``; else None."""
        blocks = self.transformer.transformer_blocks
        if self.index + 1 == len(blocks) or self.transformer.gradient_checkpointing:
            return None
        block = blocks[self.index + 1]
        here = isinstance(vars(block).get("forward"), BlockForward) and block.training
        return block if here and is_bare(block.norm1) else None


def obstacle(transformer: Any) -> str | None:
    """Why these blocks must run diffusers' own forward, None if they need not."""
    from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0
    from diffusers.models.transformers.sana_transformer import GLUMBConv, SanaAttnProcessor2_0, SanaTransformerBlock

    known = {"attn1": (LinearAttention, SanaLinearAttnProcessor2_0), "attn2": (SanaAttnProcessor2_0,)}
    for index, block in enumerate(transformer.transformer_blocks):
        if not untouched(block):
            return f"something has hooked block {index}"
        if type(block) is not SanaTransformerBlock or type(block.ff) is not GLUMBConv:
            return f"block {index} is a {type(block).__name__} with a {type(block.ff).__name__}"
        if block.ff.norm_type is not None or block.ff.residual_connection:
            return f"the feed-forward of block {index} has a norm or a residual of its own"
        for name, processors in known.items():
            attn = getattr(block, name, None)
            if attn is None or type(attn.processor) not in processors or attn.rescale_output_factor != 1.0:
                return f"{name} of block {index} is not Sana's"
        if not all(untouched(part) for part in (block.attn1, block.attn2, block.ff)):
            return f"something has hooked an attention or the feed-forward of block {index}"
    return None


def use_plain(transformer: Any, ways: Ways | None = None, run: Callable[..., Any] = run_block) -> str | None:
    """Let the blocks run ``run_block`` in training mode; again is the same as once.

    Args:
        transformer: SanaTransformer2DModel, with or without an adapter; changed in place.
        ways: Of making the products; those of the device by default.
        run: ``run_block`` itself, or compiled: one compilation serves all blocks.

    Returns:
        The obstacle, where the model stays as it was; else None.
    """
    use_diffusers(transformer)
    found = obstacle(transformer)
    if found is None:
        for index, block in enumerate(transformer.transformer_blocks):
            if ways and ways.joined:
                lay_weights_together(block)
            # On the object, not by another class: saving, moving and counting weights stay diffusers' own.
            vars(block)["forward"] = BlockForward(transformer, index, ways, run)
    return found


def lay_weights_together(block: Any) -> None:
    """Let the trained weights that ``side_by_side`` takes share one stretch of memory; before anybody keeps addresses."""
    own, text = block.attn1, block.attn2
    for layers in ((own.to_q, own.to_k, own.to_v), (text.to_k, text.to_v)):
        if not all(is_plain(layer, nn.Linear) for layer in layers):
            continue
        for name in ("weight", "bias"):
            parameters = [getattr(layer, name) for layer in layers]
            if all(parameter is not None and parameter.requires_grad for parameter in parameters):
                joined.lay_together(parameters)


def compiled_block() -> Callable[..., Any]:
    """``run_block`` compiled: one compilation serves all blocks, and a second one all further shapes."""
    import torch._inductor.config as inductor

    inductor.comprehensive_padding = False  # else rows of 5600 numbers are padded to 5632 and copied back
    torch._dynamo.config.recompile_limit = 32  # two lengths of text, two picture shapes and three batch sizes make 8
    # The compiler looks at .grad of every input, activations too, and warns itself of that.
    warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")
    return torch.compile(run_block)


def use_diffusers(transformer: Any) -> None:
    """Undo ``use_plain``."""
    for block in transformer.transformer_blocks:
        if isinstance(vars(block).get("forward"), BlockForward):
            del vars(block)["forward"]


def in_use(transformer: Any) -> bool:
    """Whether the next call runs ``run_block``."""
    blocks = getattr(transformer, "transformer_blocks", ())
    return any(isinstance(vars(block).get("forward"), BlockForward) and block.training for block in blocks)


def needed_mask(mask: torch.Tensor) -> torch.Tensor | None:
    """None for a mask on the CPU that hides nothing; one on a GPU is not asked, since the step would wait for it."""
    return None if mask.device.type == "cpu" and bool(mask.all()) else mask
