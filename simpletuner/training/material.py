"""Part of the composition root: what is trained on. Pictures found become cached latents and texts, drawn in an order.

In: a session, its parts and the pictures found. Out: ``Material``. Trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simpletuner.data.cache import content_key
from simpletuner.data.loader import LatentRef, Loader
from simpletuner.data.ondemand import OnDemand
from simpletuner.data.sampler import Plan
from simpletuner.models.base import Components
from simpletuner.training import fast_path, keeping, prepare, translate_data
from simpletuner.training.caching import Texts, fill_caches, on_demand
from simpletuner.training.redraw import Samples
from simpletuner.training.session import Session, check_sizes


@dataclass(frozen=True, slots=True)
class Material:
    """What a run learns from, and what it is measured with.

    Attributes:
        training: Pictures of the training datasets.
        held_out: Pictures that are only measured.
        refs: Where each picture's latents are.
        texts: Text embeds by caption.
        latents_of: Latents by reference, encoded now where they are not cached.
        samples: The training pictures as they are drawn.
        plan: Which of them make each micro-batch.
        loader: Reads and stacks them.
    """

    training: Sequence[prepare.Found]
    held_out: Sequence[prepare.Found]
    refs: keeping.Refs
    texts: Texts
    latents_of: OnDemand
    samples: Samples
    plan: Plan
    loader: Loader

    def shown(self) -> list[LatentRef]:
        """All training pictures."""
        return [self.refs[item.source.id, p.sample.path] for item in self.training for p in item.placed]

    def close(self) -> None:
        """Nothing is encoded any more."""
        self.latents_of.close()
        self.texts.close()


def gather(
    session: Session, parts: Components, training: list[prepare.Found], held_out: list[prepare.Found]
) -> Material:
    """Fill the caches, and plan the order in which they are read."""
    refs, texts = fill_caches(session, parts, [*training, *held_out])
    check_sizes(session, training)  # again: pictures that could not be decoded are out now
    latents_of = on_demand(session, parts)
    samples = Samples(training, refs, latents_of.forget)
    options = session.config.options
    drawn_from = ((p.key, p.sample.captions) for p in samples.placed)
    session.ranks.must_agree("pictures or captions", content_key(*drawn_from))
    plan = samples.plan(translate_data.drawing(session.config), options.training.seed)
    loader = Loader(
        samples,
        texts,
        plan,
        options.training.seed,
        options.data.caption_dropout_probability,
        {item.source.id: item.source.timestep_offset for item in training},
        latents_of,
        translate_data.regularisation(session.config),
        text_multiple=fast_path.text_multiple(
            options.precision.transformer_forward, session.device, options.training.train_batch_size
        ),
        pinned=session.device.type == "cuda",
        share=(session.ranks.rank, session.ranks.world),
    )
    return Material(training, held_out, refs, texts, latents_of, samples, plan, loader)
