"""Fit a run to the memory there is: which blocks are recomputed, and how the VAE works. Pure functions.

In: an estimate as a function of a ``Choice``, and a budget. Out: the quickest choice that fits, or None. None of these
changes what a result means: recomputed activations are the same numbers, and tiled latents differ little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from simpletuner.training.memory_estimate import GIB, Estimate

INTERVALS = (0, 3, 2, 1)  # from no block recomputed to all of them
VAE_PHASES = ("pictures", "validation")


@dataclass(frozen=True, slots=True)
class Choice:
    """What memory decides.

    Attributes:
        interval: Every n-th block is recomputed; 0 for none.
        tiling: The VAE works in tiles.
        vae_batch: Pictures in a call of the VAE's encoder.
    """

    interval: int
    tiling: bool
    vae_batch: int


def vae_ways(tilings: Sequence[bool], batches: Sequence[int]) -> list[tuple[bool, int]]:
    """(tiling, batch) from the quickest to the smallest: tiles cost twice the work, so batches shrink first."""
    return [(tiling, batch) for tiling in tilings for batch in batches]


def choose(
    estimate: Callable[[Choice], Estimate],
    first: Choice,
    intervals: Sequence[int],
    vae: Sequence[tuple[bool, int]],
    budget: float,
) -> Choice | None:
    """The first way of each kind that fits, together.

    Args:
        estimate: Of a choice.
        first: To start from.
        intervals: From which to choose ``interval``, in order.
        vae: Ways of the VAE, in order.
        budget: Bytes, the driver's context included.

    Returns:
        The choice, or None where something does not fit in any way.
    """
    chosen = first
    for tiling, batch in vae:
        chosen = replace(first, tiling=tiling, vae_batch=batch)
        phases = estimate(chosen).phases
        if all(phases.get(name, 0.0) <= budget for name in VAE_PHASES):
            break
    for interval in intervals:
        candidate = replace(chosen, interval=interval)
        if estimate(candidate).peak <= budget:
            return candidate
    return None


def batches(most: int) -> list[int]:
    """Halves of a batch, down to one picture."""
    sizes = [most]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    return sizes


def told(choice: Choice, found: Estimate, budget: float, kept: Sequence[str]) -> str:
    """The choice in one line, and why."""
    which = {0: "no block", 1: "every block", 2: "every 2nd block", 3: "every 3rd block"}  # more only where it is set
    parts = [f"{which.get(choice.interval, f'one block in {choice.interval}')} is recomputed"]
    parts.append(f"the VAE takes {choice.vae_batch} at a time{', in tiles' if choice.tiling else ''}")
    set_ones = f"; kept as set: {', '.join(kept)}" if kept else ""
    return f"memory: {', '.join(parts)}: about {found.peak / GIB:.1f} of {budget / GIB:.1f} GiB{set_ones}"
