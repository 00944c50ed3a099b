"""What the folders of latents and text embeds are named by: a digest of everything that went into them.

So a changed model, prefix or dtype never meets old data, and data is found again wherever the model's files lie.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch

from simpletuner.data.cache import content_key, weights_digest
from simpletuner.models.base import TextSettings
from simpletuner.models.quantize import Settings
from simpletuner.training import prepare, translate_precision
from simpletuner.training.session import Session

NAME_LENGTH = 16  # hex digits; a folder's name is for people too


def of_latents(vae: Any, dtype: torch.dtype, tile_rules: str) -> str:
    """Names the latents of one encoder by what made them, wherever its folder lies and whichever diffusers has read it.

    Args:
        vae: A diffusers model.
        dtype: Of the latents that are kept.
        tile_rules: How pictures are cut, or "".
    """
    settings = {name: value for name, value in dict(vae.config).items() if not name.startswith("_")}
    about = (weights_digest(vae), type(vae).__name__, json.dumps(settings, sort_keys=True, default=str))
    return content_key("latents", *about, dtype, *([tile_rules] if tile_rules else []))[:NAME_LENGTH]


def of_texts(
    text_encoder: Any, tokenizer: Any, text: TextSettings, dtype: torch.dtype, quantised: Settings | None
) -> str:
    """Names the embeds of one text encoder, which is not quantised yet.

    Args:
        text_encoder: A transformers model.
        tokenizer: Its tokenizer.
        text: How captions become tokens.
        dtype: Of the embeds that are kept.
        quantised: How it will be, or None.
    """
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    parts = ("text", weights_digest(text_encoder), vocabulary, asdict(text), dtype)
    return content_key(*parts, *([quantised.name] if quantised else []))[:NAME_LENGTH]


def latents_of(session: Session, vae: Any, found: list[prepare.Found]) -> str:
    """``of_latents`` for a configuration and its pictures."""
    tiles = session.facts.vae_tile_rules if in_tiles(session, found) else ""
    return of_latents(vae, session.precision.cache, tiles)


def texts_of(session: Session, text_encoder: Any, tokenizer: Any) -> str:
    """``of_texts`` for a configuration."""
    quantised = translate_precision.text_quantisation(session.config.options, session.precision, session.device)
    return of_texts(text_encoder, tokenizer, session.text, session.precision.cache, quantised)


def in_force(session: Session, found: list[prepare.Found]) -> frozenset[str]:
    """Names of the folders that a run reads and writes; loads the VAE and the text encoder, one after the other.

    What is encoded anew every time has none.

    Raises:
        ModelError: They cannot be loaded.
    """
    names = set()
    if any(item.source.caching != "never" for item in found):
        names.add(latents_of(session, session.family.autoencoder(session.source), found))
    if session.config.datasets.text_caching != "never":
        encoder, tokenizer = session.family.text_encoder(session.source), session.family.tokenizer(session.source)
        names.add(texts_of(session, encoder, tokenizer))
    return frozenset(names)


def in_tiles(session: Session, found: list[prepare.Found]) -> bool:
    """Whether latents are encoded in tiles, which makes them other latents."""
    return session.source.vae_tiling and prepare.longest_side(found) > session.facts.vae_tile
