"""Captions and prompts become text embeds, token for token as diffusers' SanaPipeline does it.

One function serves training captions, dropped captions and validation prompts, so that they cannot drift apart.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from simpletuner.models.base import EncodedText, TextSettings


def default_instruction() -> tuple[str, ...]:
    """Sana's Complex Human Instruction, read from the reference pipeline so that it cannot go stale."""
    from diffusers import SanaPipeline

    lines = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    return tuple(lines)


def tokenize(
    tokenizer: Any, captions: list[str], settings: TextSettings, with_instruction: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask before the slice to ``max_tokens``.

    Args:
        tokenizer: The pipeline's tokenizer; its padding side is set to the right.
        captions: As the user wrote them; lower-cased and stripped here, as the pipeline does.
        settings: Prefix and length.
        with_instruction: False for dropped captions and negative prompts, which never have the prefix.

    Returns:
        ids and mask, both [B, prefix tokens + max_tokens - 2] with a prefix, [B, max_tokens] without.

    Source: ``SanaPipeline._get_gemma_prompt_embeds``.
    """
    tokenizer.padding_side = "right"
    texts = [caption.lower().strip() for caption in captions]
    length = settings.max_tokens
    if with_instruction and settings.instruction:
        prefix = "\n".join(settings.instruction)
        texts = [prefix + text for text in texts]
        length = len(tokenizer.encode(prefix)) + settings.max_tokens - 2
    tokens = tokenizer(
        texts,
        padding="max_length",
        max_length=length,
        truncation=True,
        add_special_tokens=True,
        return_tensors="pt",
    )
    return tokens.input_ids, tokens.attention_mask


def cut_off(tokenizer: Any, caption: str, settings: TextSettings) -> str:
    """The end of a caption that the model never sees, "" if all of it fits.

    Token for token what ``tokenize`` drops: with a prefix that is whatever lies beyond prefix + max_tokens - 2 tokens.
    """
    prefix = "\n".join(settings.instruction) if settings.instruction else ""
    length = len(tokenizer.encode(prefix)) + settings.max_tokens - 2 if prefix else settings.max_tokens
    text = caption.lower().strip()
    tokens = tokenizer(
        prefix + text, truncation=False, add_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    if len(tokens.input_ids) <= length:
        return ""
    start = max(0, tokens.offset_mapping[length][0] - len(prefix))
    return caption.strip()[start:] if len(caption.strip()) == len(text) else text[start:]


@torch.no_grad()
def encode_captions(
    tokenizer: Any,
    text_encoder: torch.nn.Module,
    captions: list[str],
    settings: TextSettings,
    with_instruction: bool,
) -> EncodedText:
    """Encode captions; padding on the right, so real tokens come first.

    Returns:
        embeds [B, max_tokens, D] in the encoder's dtype and mask [B, max_tokens] int64.

    Source: ``SanaPipeline.encode_prompt``: the first position and the last max_tokens - 1 are kept.
    """
    ids, mask = tokenize(tokenizer, captions, settings, with_instruction)
    device = next(text_encoder.parameters()).device
    ids, mask = ids.to(device), mask.to(device)
    embeds = text_encoder(ids, attention_mask=mask, use_cache=False)[
        0
    ]  # keys and values are for a next token: none comes
    kept = [0, *range(-settings.max_tokens + 1, 0)]
    return EncodedText(embeds=embeds[:, kept], mask=mask[:, kept])
