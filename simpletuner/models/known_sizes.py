"""Which picture sizes a model knows: configure refuses others, check and train warn, with some leeway above.

In: the edge in pixels that the weights were made for (``Facts.native_resolution``). Sizes count by their area: a model sees
all aspects of about its own area. Below half the edge it draws other pictures than it learned, above it objects come twice;
it can be trained to either, which takes longer than a fine-tune.
"""

from __future__ import annotations

from simpletuner.data.types import Size

# Times the area: resolution_type pixel puts the short side at the edge, and a photograph of 3:2 has so much.
LEEWAY = 1.5


def known_edges(native: int) -> tuple[int, int]:
    """The least and the largest edge of a square that the model knows, in pixels."""
    return native // 2, native


def knows(size: Size, native: int, alignment: int) -> bool:
    """Whether a bucket is of a size that the model knows, or hardly above it.

    Args:
        size: Of the bucket, in pixels.
        native: The edge that the weights were made for, in pixels.
        alignment: What a bucket's sides are rounded to, in pixels; what that does is passed over.
    """
    low, high = known_edges(native)
    rounding = alignment / 2
    least = (size.width - rounding) * (size.height - rounding)
    most = (size.width + rounding) * (size.height + rounding)
    return least <= LEEWAY * high**2 and most >= low**2


def what_it_knows(native: int) -> str:
    """The rule as a reason."""
    return f"the model draws at {native} px and knows pictures from half of that to the whole"
