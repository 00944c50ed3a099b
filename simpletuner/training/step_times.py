"""How long a step takes on the machine where steps were measured, scaled to another model and picture. A small table.

In: the shape of a batch. Out: milliseconds, or None where nothing like it was measured. On other cards nothing is known.
"""

from __future__ import annotations

from dataclasses import dataclass

from simpletuner.models.base import Forward

MACHINE = "NVIDIA H100 80GB"
_TOKENS, _WEIGHTS, _BLOCKS = 1024, 1.6045e9, 20  # of what was measured: Sana 1.6B at 1024 px, full rank in bf16
RECOMPUTE = 1 / 3  # one more forward pass of three passes' work; measured 0.31 to 0.35 at batches 4 and 8 (9ab0481)


@dataclass(frozen=True, slots=True)
class Measured:
    """A straight line through batch 1 and batch 8, and the least that launching a step takes.

    Attributes:
        fixed: Milliseconds whatever the batch: the optimizer, and kernels too small to fill the card.
        picture: Milliseconds a picture.
        launch: The least, where steps wait for the host.
    """

    fixed: float
    picture: float
    launch: float


# bench/RESULTS.md: 29.9 and 140.7 ms as graphs (a031ec4); diffusers 257, 251 and, at batch 16, 475 (03ed219). Launched: 101
# at batch 1, and 6 more than a graph at batch 8, with older kernels (43e21fc).
_FAST = Measured(14.1, 15.8, 0.0)
_LAUNCHED = Measured(20.3, 15.8, 101.0)
_DIFFUSERS = Measured(0.0, 29.7, 254.0)


@dataclass(frozen=True, slots=True)
class Step:
    """What is asked.

    Attributes:
        forward: Of the blocks.
        graph: Steps are CUDA graphs.
        batch: Pictures.
        tokens: Of one picture.
        weights: Of the transformer.
        blocks: Of the transformer.
        interval: Every n-th block is recomputed; 0 for none.
    """

    forward: Forward
    graph: bool
    batch: int
    tokens: int
    weights: int
    blocks: int
    interval: int


def milliseconds(step: Step) -> float | None:
    """About how long one micro-batch and one update take on ``MACHINE``; None for what was not measured."""
    if step.forward == "plain":
        return None
    line = _DIFFUSERS if step.forward == "diffusers" else _FAST if step.graph else _LAUNCHED
    size, again = step.weights / _WEIGHTS, 1 + (RECOMPUTE / step.interval if step.interval else 0.0)
    work = line.picture * step.batch * step.tokens / _TOKENS * size * again
    return max(line.fixed * size + work, line.launch * step.blocks / _BLOCKS)


def describe(step: Step, card: str | None) -> str:
    """One sentence; ``card`` is the name of the GPU here, or None."""
    found = milliseconds(step)
    if found is None:
        return "How long a step takes is not known: nothing like it was measured"
    told = f"about {found:.0f} ms on one {MACHINE}, where it was measured"
    if card and "H100" in card:
        return f"A step takes {told}, so {1000 * step.batch / found:.1f} pictures/s"
    here = f"for {card}" if card else "without a GPU"
    return f"A step takes {told}; {here} it is not known"
