"""A CLIP of a few random weights, in a folder as the published ones are."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ["<start>", "<end>", "<unk>", "a", "red", "blue", "house", "fox"]
LONGEST = 12


def write(folder: Path) -> Path:
    """Model, tokenizer (one token a word) and image processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<end>", eos_token="<end>", model_max_length=LONGEST
    ).save_pretrained(folder)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": len(WORDS), "max_position_embeddings": LONGEST, "eos_token_id": 1, "bos_token_id": 0}
    config = CLIPConfig(
        text_config={**shape, **words}, vision_config={**shape, "image_size": 32, "patch_size": 8}, projection_dim=16
    )
    torch.manual_seed(3)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
