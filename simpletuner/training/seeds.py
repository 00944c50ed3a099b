"""Seeds made from a seed and a position, so that a resumed run draws what the uninterrupted one draws."""

from __future__ import annotations


def mixed_seed(seed: int, position: int) -> int:
    """A seed in [0, 2^63) for one position.

    The multipliers are large odd constants, so neighbouring seeds do not share streams at shifted positions.
    """
    return (seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63
