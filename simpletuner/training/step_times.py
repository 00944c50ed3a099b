"""How long a step takes on the machine where steps were measured, scaled to another model and picture. A small table.

In: the shape of a batch. Out: milliseconds, or None where nothing like it was measured. On other cards nothing is known.
"""

from __future__ import annotations

from dataclasses import dataclass

from simpletuner.models.base import Forward
from simpletuner.wording import counted, lasting

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
        float32: Weights and products are.
    """

    forward: Forward
    graph: bool
    batch: int
    tokens: int
    weights: int
    blocks: int
    interval: int
    float32: bool = True


def milliseconds(step: Step) -> float | None:
    """About how long one micro-batch and one update take on ``MACHINE``; None for what was not measured, so small a model too."""
    if step.forward == "plain" or step.weights <= _SMALL:
        return None
    line = _DIFFUSERS if step.forward == "diffusers" else _FAST if step.graph else _LAUNCHED
    size, again = step.weights / _WEIGHTS, 1 + (RECOMPUTE / step.interval if step.interval else 0.0)
    work = line.picture * step.batch * step.tokens / _TOKENS * size * again
    return max(line.fixed * size + work, line.launch * step.blocks / _BLOCKS)


# 400 steps in float32 of 16 pictures of 64 tokens, full rank, LoRA and LoKr of the pocket's 4.3 million weights, on two cores that other
# work shared: 0.35 to 0.45 s; bench/methods.py: 0.25 to 0.65 s.
_ON_CPU, _ON_CPU_WORK, _SMALL = 0.4, 16 * 64 * 4.28e6, 20_000_000


def on_two_cores(step: Step) -> float | None:
    """About how many seconds a step of a very small model takes without a card in float32; None for any other model."""
    if step.weights > _SMALL:
        return None
    return _ON_CPU * step.batch * step.tokens * step.weights / _ON_CPU_WORK


def describe_on_cpu(step: Step, steps: int) -> str | None:
    """One sentence on the steps of a run; None where nothing is known."""
    found = on_two_cores(step)
    if found is None:
        return None
    if not step.float32:
        return "how long a step takes is seen when the run begins: on a CPU only float32 was measured beforehand"
    return f"{counted(steps, 'step takes', 'steps take')} about {lasting(found * steps)} on two CPU cores, and validation more"


UNKNOWN = "how long a step takes is seen when the run begins: only full rank in bf16 on a card was measured beforehand"


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
