"""What check, train and cache say of pictures in sizes that the model does not know. A warning: it may be trained to them."""

from __future__ import annotations

from collections.abc import Sequence

from simpletuner.models.base import Facts
from simpletuner.models.known_sizes import knows, what_it_knows
from simpletuner.training.prepare import Found
from simpletuner.wording import counted


def notes(training: Sequence[Found], facts: Facts) -> list[str]:
    """A sentence for each training dataset with pictures in buckets of such a size."""
    return [sentence for item in training if (sentence := _note(item, facts))]


def _note(item: Found, facts: Facts) -> str:
    native, buckets = facts.native_resolution, [placed.placement.bucket for placed in item.placed]
    strange = [bucket for bucket in buckets if not knows(bucket, native, item.source.placement.alignment)]
    if not strange:
        return ""
    farthest = max(strange, key=lambda size: abs(size.width * size.height - native**2))
    times = farthest.width * farthest.height / native**2
    cost = f", and each costs about {times:.1f} times what one of {native} px does" if times > 1 else ""
    return (
        f"WARNING: [{item.source.id}] {len(strange)} of {counted(len(buckets), 'picture')} get a size such as {farthest}: "
        f"{what_it_knows(native)}{cost}. What to do: set resolution to {native} and resolution_type to pixel_area, or go on if "
        "the model is to learn that size"
    )
