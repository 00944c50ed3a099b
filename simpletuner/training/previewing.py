"""Part of the composition root: previews while validation pictures are drawn, with the best decoder there is.

In: a session, its model and the samples. Out: a Previewer, or None. The order: the decoder that was chosen, the model's own
tiny one, a linear map fitted to the user's own latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from simpletuner.data.linear_rgb import Moments
from simpletuner.data.loader import LatentRef
from simpletuner.data.ondemand import OnDemand
from simpletuner.evaluation.previews import Preview, Previewer
from simpletuner.models.base import Components, PreviewDecoder
from simpletuner.models.linear_preview import LinearDecoder
from simpletuner.reporting import events
from simpletuner.training.session import Session

FOLDER = "previews"
DECODED = 8  # pictures that the VAE decodes for a linear map where nothing was noted while they were encoded
POOR = 10.0  # dB; a map to one mean colour has about as much


def tiny_decoder(session: Session) -> PreviewDecoder | None:
    """The chosen decoder or the model's own, before anything else takes time; None without one, or without previews.

    Raises:
        ModelError: The chosen decoder is not there or does not fit.
    """
    options = session.config.options.previews
    if not options.validation_preview or not session.draws:
        return None
    return session.family.preview_decoder(session.source, options.validation_preview_decoder or "")


def make_previewer(
    session: Session,
    tiny: PreviewDecoder | None,
    parts: Components,
    samples: Sequence[LatentRef],
    latents_of: OnDemand,
) -> Previewer | None:
    """The previewer, told in a sentence; None if no previews are wanted.

    Args:
        session: Of this run.
        tiny: What ``tiny_decoder`` gave.
        parts: The VAE among them, where it is.
        samples: Of the training pictures.
        latents_of: Their latents.
    """
    options = session.config.options.previews
    if not options.validation_preview:
        return None
    decoder = (tiny or _linear(session, parts, samples, latents_of)).to(session.device)
    loss = _compare(session, parts, decoder, samples[:1], latents_of)
    every = options.validation_preview_steps
    session.reporter.say(
        f"Previews every {every} sampler steps, in {FOLDER}: {decoder.name}, {loss:.0f} dB of what the VAE makes of a "
        "training picture"
    )
    if tiny and loss < POOR:
        session.reporter.say(
            f"WARNING: {decoder.name} makes another picture than the VAE of the same latents: it most likely belongs to "
            "another model. What to do: give the right one, or leave validation_preview_decoder out."
        )
    return Previewer(
        decoder,
        session.output_dir / FOLDER,
        every,
        lambda preview: session.stages.emit(_event(preview)),
        session.reporter.say,
    )


def _event(preview: Preview) -> events.Preview:
    picture = preview.picture
    return events.Preview(
        title="Preview",
        message=f"Validation (step {preview.sampler_step}/{preview.of}): {picture.nickname}",
        step=picture.step,
        sampler_step=preview.sampler_step,
        of=preview.of,
        timestep=preview.timestep,
        nickname=picture.nickname,
        prompt=picture.prompt,
        width=preview.width,
        height=preview.height,
        path=preview.path,
        label=picture.label,
    )


def _vae_pixels(session: Session, parts: Components, latents: torch.Tensor) -> torch.Tensor:
    """What the VAE makes of latents; it decodes where they are."""
    return session.family.decode_latents(parts.vae, latents.to(session.device).float()).cpu()


def _compare(
    session: Session, parts: Components, decoder: PreviewDecoder, samples: Sequence[LatentRef], latents_of: OnDemand
) -> float:
    """The decoder settled on the VAE's own picture; its signal-to-noise ratio in dB."""
    latents = latents_of(samples).float()
    return decoder.fit(latents.to(session.device), _vae_pixels(session, parts, latents).to(session.device))


def _linear(session: Session, parts: Components, samples: Sequence[LatentRef], latents_of: OnDemand) -> LinearDecoder:
    """The linear map: of what was noted while pictures were encoded, else of a few that the VAE decodes."""
    channels = session.facts.latent_channels
    moments = Moments(channels)
    for folder in sorted({sample.store.folder for sample in samples if sample.store is not None}):
        noted = Moments.load(folder, channels)
        if noted:
            moments.merge(noted)
    if not moments.cells:
        for sample in samples[:: max(1, len(samples) // DECODED)][:DECODED]:
            latents = latents_of([sample]).float()
            moments.add(latents, _vae_pixels(session, parts, latents))
    return LinearDecoder(moments.solve(), session.facts.stride)
