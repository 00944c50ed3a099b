"""How much GPU memory a run takes, phase by phase: pure sums over counts and bytes; nothing is looked at or loaded.

In: a ``Plan`` in plain values. Out: an ``Estimate``. Phases follow one another and unload one another, so the run takes the
largest of them. What torch reserves is a little more than what is in use; the driver's context comes beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from simpletuner.models.base import Activations, Footprint
from simpletuner.training.device import CONTEXT

GIB = 2**30
SLACK = 1.01  # reserved beside in use, where tensors of a step come and go
# Of what is trained, where steps are graphs: states that are made between activations leave room that nothing fits.
# Where gradients are released, no large ones come between them.
PIECES, PIECES_RELEASED = 0.075, 0.02
LIBRARIES = 192 * 2**20  # cuBLAS, cuDNN and pieces that nothing fits into
SCALES = {
    4: 0.0162,
    8: 0.002,
}  # bytes a quantised weight beside its bits: scales of 64 weights (themselves in 8 bits), of a row
PIXEL_MARGIN = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Learning:
    """What one trained weight costs.

    Attributes:
        weight: Bytes of the weight, and of its gradient.
        state: Bytes of the optimizer's state on the GPU; paged states are on the host.
        ema: Bytes of the average on the GPU.
        sums: Bytes of the float32 sum of micro-batches.
        released: Gradients are freed inside backward.
        averaged: A second copy of the weights is made while pictures are drawn.
    """

    weight: float
    state: float
    ema: float = 0.0
    sums: float = 0.0
    released: bool = False
    averaged: bool = False


@dataclass(frozen=True, slots=True)
class Caching:
    """What encoding takes.

    Attributes:
        pictures: Bytes beside the VAE's weights for one picture.
        vae_batch: Pictures in a call; 0 where nothing is encoded ahead.
        text_bytes: Bytes of a weight of the text encoder, quantised or not.
        text_tokens: Of one caption, instruction included.
        captions: In a call.
        text_width: Bytes of a number of the text encoder.
        base_waits: The quantised base is on the GPU already.
        vae_stays: Pictures are encoded while training, too.
        text_stays: Captions are encoded while training, too.
    """

    pictures: int
    vae_batch: int
    text_bytes: float
    text_tokens: int
    captions: int
    text_width: int
    base_waits: bool = False
    vae_stays: bool = False
    text_stays: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A run in numbers.

    Attributes:
        footprint: Counts of the model.
        activations: Of one step.
        batch_bytes: Of one activation of all tokens of the batch: what a recomputed block keeps.
        learning: Of a trained weight.
        frozen: Bytes of all weights of the frozen base under an adapter; 0 in full rank.
        scratch: Bytes that one product needs to have quantised weights at hand.
        accumulates: Gradients of earlier micro-batches are there when a step's forward begins.
        interval: Every n-th block is recomputed; 0 for none.
        graph: Steps are CUDA graphs.
        caching: Of the encoders.
        decoding: Bytes beside the decoder's weights for one validation picture; 0 where none is drawn.
        aside: The transformer's weights leave the GPU while a picture is decoded.
    """

    footprint: Footprint
    activations: Activations
    batch_bytes: int
    learning: Learning
    frozen: float
    scratch: float
    accumulates: bool
    interval: int
    graph: bool
    caching: Caching
    decoding: int
    aside: bool = False

    @property
    def trained(self) -> int:
        """Trained weights."""
        return self.footprint.blocks * self.activations.trained_block + self.activations.trained_outside


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes by phase, the driver's context included.

    Attributes:
        phases: Name → bytes.
        graphs: Bytes that CUDA graphs of several shapes take beside the steps where they are free; where not, they give way.
        parts: What is in memory while steps run: name → bytes.
        aside: The transformer leaves the GPU while a validation picture is decoded.
    """

    phases: Mapping[str, float]
    graphs: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)
    aside: bool = False

    @property
    def peak(self) -> float:
        """The largest phase."""
        return max(self.phases.values())

    @property
    def where(self) -> str:
        """Its name."""
        return max(self.phases, key=lambda name: self.phases[name])


def quantised_bytes(bits: int, matrices: float, rest: float, width: int) -> float:
    """Bytes of a model of which ``matrices`` weights are quantised and ``rest`` weights have ``width`` bytes."""
    return matrices * (bits / 8 + SCALES[bits]) + rest * width


def step_dynamic(plan: Plan) -> float:
    """The most that a step needs beside weights, states and averages: activations against gradients, block by block.

    Backward goes from the last block to the first: what a block kept is freed, its gradients come. A recomputed block
    keeps its input, and all the others while it is gone through again.
    """
    made, learning = plan.activations, plan.learning
    blocks = plan.footprint.blocks
    recomputed = [bool(plan.interval) and i % plan.interval == 0 for i in range(blocks)]
    small = plan.batch_bytes
    kept = [small if again else made.block for again in recomputed]
    block_grads = made.trained_block * learning.weight
    added = 0.0 if plan.accumulates else block_grads  # they are there already
    grads = plan.trained * learning.weight if plan.accumulates else made.trained_outside * learning.weight
    before, most = (
        made.outside + sum(kept),
        made.outside + sum(kept) + made.transient + (grads if plan.accumulates else 0.0),
    )
    for index in reversed(range(blocks)):
        now = before + (made.block if recomputed[index] else 0) + made.transient + grads
        most = max(most, now + (block_grads if learning.released else 0))
        before -= kept[index]
        grads += 0.0 if learning.released else added
        most = max(most, before + made.transient + grads)
    return most + plan.scratch


def estimate(plan: Plan) -> Estimate:
    """Sum up every phase.

    Returns:
        Phases "pictures" and "captions" (encoding), "steps", "validation".
    """
    model, learning, caching = plan.footprint, plan.learning, plan.caching
    trained = plan.trained
    vae, text = model.vae_weights * 4.0, model.text_weights * caching.text_bytes
    weights = plan.frozen + trained * learning.weight
    states, averages = trained * learning.state, trained * (learning.ema + learning.sums)
    waiting = plan.frozen if caching.base_waits else 0.0
    phases: dict[str, float] = {}
    if caching.vae_batch:
        phases["pictures"] = waiting + vae + caching.vae_batch * caching.pictures
    phases["captions"] = waiting + text + _text_activations(caching, model) + (vae if caching.vae_stays else 0.0)
    beside = (vae + caching.pictures if caching.vae_stays else 0.0) + (text if caching.text_stays else 0.0)
    lasting = weights - plan.frozen + states
    left = PIECES_RELEASED * lasting if learning.released else PIECES * (lasting + trained * learning.weight)
    pieces = left if plan.graph else 0.0
    static = weights + states + averages + beside + pieces + LIBRARIES
    dynamic = step_dynamic(plan) * SLACK
    phases["steps"] = static + dynamic
    if plan.decoding:
        copy = trained * learning.weight if learning.averaged else 0.0
        decoder = 0.0 if caching.vae_stays else model.vae_decoder_weights * 4.0
        gone = weights if plan.aside else 0.0
        phases["validation"] = static + copy - gone + decoder + plan.decoding + PIXEL_MARGIN
    return Estimate(
        phases={name: value + CONTEXT for name, value in phases.items()},
        graphs=dynamic if plan.graph else 0.0,
        parts={
            "weights": weights,
            "optimizer": states,
            "EMA and sums": averages,
            "encoders": beside,
            "activations and gradients": dynamic,
            "the driver and its libraries": CONTEXT + LIBRARIES,
            "between these": pieces,
        },
        aside=plan.aside,
    )


def _text_activations(caching: Caching, model: Footprint) -> float:
    """The most that a batch of captions needs: one feed-forward, and the scores in float32 and once more."""
    numbers = caching.captions * caching.text_tokens * model.text_token_numbers
    scores = caching.captions * model.text_heads * caching.text_tokens**2
    return numbers * caching.text_width + scores * (4 + caching.text_width)


def describe(found: Estimate) -> str:
    """One line: the peak, each phase in GiB, and what graphs would like beside."""
    told = ", ".join(f"{name} {value / GIB:.1f}" for name, value in found.phases.items())
    more = f"; CUDA graphs take up to {found.graphs / GIB:.1f} more where they are free" if found.graphs else ""
    return f"about {found.peak / GIB:.1f} GiB of GPU memory ({told}; half a GiB of each is the driver's{more})"
