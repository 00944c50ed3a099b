"""Part of the composition root: the model's parts, how they are loaded and where they are.

In: a session. Out: its parts on the device, and later only those there that training needs.
"""

from __future__ import annotations

import torch

from simpletuner.data.ondemand import TextsOnDemand
from simpletuner.models.base import Components
from simpletuner.training import quantising, resuming, translate_precision
from simpletuner.training.material import Material
from simpletuner.training.session import Session


def load_model(session: Session) -> tuple[Components, str]:
    """All parts, the base quantised if asked for; and a short digest of the base weights."""
    session.reporter.say(f"Loading {session.source.path}")
    parts = session.family.load(session.source)
    model = resuming.sketch(parts.transformer)
    quantised = translate_precision.base_quantisation(session.config.options, session.precision, session.device)
    if quantised:
        session.reporter.say(quantising.transformer(session.family, parts, session.facts, quantised))
    parts.vae.to(session.device)
    return parts, model


def make_room(session: Session, parts: Components, material: Material) -> None:
    """What only caching needed leaves the device, and the transformer comes; the decoder is fetched while pictures are drawn."""
    if isinstance(material.texts, TextsOnDemand):
        pass  # captions are still to be encoded
    elif session.config.options.precision.text_encoder_1_precision != "no_change":
        parts.text_encoder = None  # the export has the published weights, not the quantised ones
    else:
        parts.text_encoder.to("cpu")
    if all(item.source.caching == "ahead" for item in [*material.training, *material.held_out]):
        parts.vae.to("cpu")
    if session.device.type == "cuda":
        torch.cuda.empty_cache()  # what caching had reserved is free for training, and for other programs on the card
    parts.transformer.to(session.device)
