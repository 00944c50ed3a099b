"""Room 2, Place: a picture's size becomes its bucket, its resize and its crop box.

In: a Size and PlacementRules. Out: a Placement, integers only. Touches no pixels and never stretches: a picture is
resized with its own aspect until it covers the bucket, then cropped.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Literal

from simpletuner.data.types import Placement, Size
from simpletuner.errors import DataError

MAX_RESIZED_PIXELS = 100_000_000
ResolutionType = Literal["pixel", "area", "pixel_area"]


@dataclass(frozen=True, slots=True)
class PlacementRules:
    """Where pictures go.

    Attributes:
        resolution: In the unit of ``resolution_type``.
        resolution_type: ``pixel``: the shorter edge in pixels; ``area``: megapixels; ``pixel_area``: the edge in
            pixels of a square with the wanted area.
        alignment: Bucket sides are multiples of this, in pixels.
        crop: False keeps the picture's own aspect; at most one alignment cell is trimmed.
        crop_aspect: With ``crop``: ``square``, ``preserve`` (own aspect), or ``closest`` or ``random`` of
            ``aspect_buckets``.
        aspect_buckets: Width / height ratios for ``closest`` and ``random``.
        aspect_weights: How often ``random`` takes each of them; empty for equally often.
        max_upscale_threshold: ``closest`` and ``random`` pass over buckets for which the picture would have to be
            enlarged by more than this share (0.1 is 10 %), where another is left.
        minimum_aspect_ratio: Width / height below it is rejected.
        maximum_aspect_ratio: Width / height above it is rejected.
        crop_style: ``center``, ``corner`` (top left) or ``random``.
        minimum_image_size: Smaller pictures are rejected; same unit as ``resolution``. None or 0: no limit.
        maximum_image_size: With ``crop``: larger pictures are first downsampled to ``target_downsample_size``.
        target_downsample_size: See above; same unit.
    """

    resolution: float
    resolution_type: ResolutionType = "pixel_area"
    alignment: int = 32
    crop: bool = False
    crop_aspect: Literal["square", "preserve", "closest", "random"] = "square"
    aspect_buckets: tuple[float, ...] = ()
    aspect_weights: tuple[float, ...] = ()
    max_upscale_threshold: float | None = None
    minimum_aspect_ratio: float | None = None
    maximum_aspect_ratio: float | None = None
    crop_style: Literal["center", "corner", "random"] = "center"
    minimum_image_size: float | None = None
    maximum_image_size: float | None = None
    target_downsample_size: float | None = None

    def __post_init__(self) -> None:
        """Refuse rules that cannot place any picture."""
        if self.crop and self.crop_aspect in ("closest", "random") and not self.aspect_buckets:
            raise DataError(f"crop_aspect {self.crop_aspect} needs crop_aspect_buckets, for example [1.0, 0.75, 1.33]")


def _square_pixels(value: float, kind: ResolutionType) -> float:
    """Area in pixels that a size option means."""
    return value * 1e6 if kind == "area" else float(value) ** 2


def _measure(size: Size, kind: ResolutionType) -> float:
    """A picture's size in the unit that compares with a size option."""
    if kind == "pixel":
        return float(min(size))
    area = float(size.width * size.height)
    return area / 1e6 if kind == "area" else math.sqrt(area)


def _unit(kind: ResolutionType) -> str:
    return {"pixel": "px on the shorter edge", "area": "megapixels", "pixel_area": "px (square root of the area)"}[kind]


def reject_reason(size: Size, rules: PlacementRules) -> str | None:
    """Why a picture of this size is not used, or None.

    ``pixel`` asks both edges for the minimum; the area types ask the area, and with a square crop also both edges,
    because a square cannot be cut from a narrower picture without enlarging it. A strip that would have to be blown up
    beyond ``MAX_RESIZED_PIXELS`` is never used.
    """
    for choice in _whatever_chance_picks(rules):
        resized = place(size, choice, 0).resize_to
        if resized.width * resized.height > MAX_RESIZED_PIXELS:
            return f"it is {size}, so narrow that it would have to be enlarged to {resized}"
    return _wrong_aspect(size, rules) or _too_small(size, rules)


def _whatever_chance_picks(rules: PlacementRules) -> list[PlacementRules]:
    """Rules that leave no bucket to chance, one for each that may be picked."""
    if not rules.crop or rules.crop_aspect != "random":
        return [rules]
    return [replace(rules, crop_aspect="closest", aspect_buckets=(a,)) for a in rules.aspect_buckets]


def possible_buckets(size: Size, rules: PlacementRules) -> set[Size]:
    """Every bucket that a picture of this size may get, whatever the seed."""
    return {place(size, choice, 0).bucket for choice in _whatever_chance_picks(rules)}


def _wrong_aspect(size: Size, rules: PlacementRules) -> str | None:
    """What the limits of width / height say of this picture."""
    aspect = size.width / size.height
    low, high = rules.minimum_aspect_ratio, rules.maximum_aspect_ratio
    if low and aspect < low:
        return f"it is {size}, width/height {aspect:.3g}; minimum_aspect_ratio is {low:g}"
    if high and aspect > high:
        return f"it is {size}, width/height {aspect:.3g}; maximum_aspect_ratio is {high:g}"
    return None


def _too_small(size: Size, rules: PlacementRules) -> str | None:
    """What ``minimum_image_size`` says of this picture."""
    minimum = rules.minimum_image_size
    if not minimum:
        return None
    kind = rules.resolution_type
    measured = _measure(size, kind)
    if measured < minimum:
        return (
            f"it is {size}, {measured:.4g} {_unit(kind)}; minimum_image_size is {minimum:g} "
            "(lower it, or leave it out, to use this picture)"
        )
    if kind != "pixel" and rules.crop and rules.crop_aspect == "square":
        edge = math.floor(math.sqrt(_square_pixels(minimum, kind)))
        if min(size) < edge:
            return f"it is {size}; with a square crop minimum_image_size {minimum:g} asks both edges for {edge} px"
    return None


def _round(value: float, alignment: int) -> int:
    return max(alignment, math.floor(value / alignment + 0.5) * alignment)


def _aspect(size: Size, rules: PlacementRules, seed: int) -> float:
    """Width / height of the bucket before rounding; ``seed`` decides where the choice is random."""
    own = size.width / size.height
    if not rules.crop or rules.crop_aspect == "preserve":
        return own
    if rules.crop_aspect == "square":
        return 1.0
    weights = rules.aspect_weights or (1.0,) * len(rules.aspect_buckets)
    allowed = dict(zip(rules.aspect_buckets, weights, strict=True))
    if rules.max_upscale_threshold is not None:
        growth = {aspect: upscaling(size, _bucket(aspect, rules)) for aspect in allowed}
        limit = max(1 + rules.max_upscale_threshold, min(growth.values()))
        allowed = {aspect: weight for aspect, weight in allowed.items() if growth[aspect] <= limit}
    if rules.crop_aspect == "random":
        return random.Random(f"aspect/{seed}").choices(list(allowed), list(allowed.values()))[0]
    return min(allowed, key=lambda a: abs(math.log(a / own)))


def upscaling(size: Size, bucket: Size) -> float:
    """How much a picture is resized to cover a bucket: above 1 it is enlarged."""
    return max(bucket.width / size.width, bucket.height / size.height)


def _bucket(aspect: float, rules: PlacementRules) -> Size:
    """The bucket nearest to the wanted resolution and aspect."""
    if rules.resolution_type == "pixel":
        width, height = rules.resolution * max(1.0, aspect), rules.resolution * max(1.0, 1 / aspect)
    else:
        edge = math.sqrt(_square_pixels(rules.resolution, rules.resolution_type))
        width, height = edge * math.sqrt(aspect), edge / math.sqrt(aspect)
    return Size(_round(width, rules.alignment), _round(height, rules.alignment))


def _covering(size: Size, scale: float, bucket: Size) -> Size:
    """The picture resized by ``scale``, rounded, and never smaller than the bucket."""
    return Size(
        max(bucket.width, math.floor(size.width * scale + 0.5)),
        max(bucket.height, math.floor(size.height * scale + 0.5)),
    )


def _downsampling(size: Size, rules: PlacementRules) -> float:
    """Scale of the downsampling before a crop: at most 1, and 0 where the rules ask for none."""
    kind, maximum, target = rules.resolution_type, rules.maximum_image_size, rules.target_downsample_size
    measured = _measure(size, kind)
    if not maximum or not target or measured <= maximum:
        return 0.0
    ratio = target / measured
    return min(1.0, math.sqrt(ratio) if kind == "area" else ratio)


def place(size: Size, rules: PlacementRules, seed: int) -> Placement:
    """Find bucket, resize and crop box.

    Args:
        size: The picture's size after EXIF rotation.
        rules: Where pictures go.
        seed: For ``crop_style`` and ``crop_aspect`` random; the same seed gives the same place.

    Returns:
        A Placement whose ``resize_to`` covers the bucket, has the picture's aspect to within one pixel of rounding,
        and whose ``crop_box`` lies inside it.
    """
    bucket = _bucket(_aspect(size, rules, seed), rules)
    scale = upscaling(size, bucket)
    if scale < 1.0 and rules.crop:  # without a crop the whole picture is wanted, straight at its bucket's size
        scale = max(scale, _downsampling(size, rules))
    resized = _covering(size, scale, bucket)
    spare_width, spare_height = resized.width - bucket.width, resized.height - bucket.height
    if not rules.crop or rules.crop_style == "center":
        left, top = spare_width // 2, spare_height // 2
    elif rules.crop_style == "corner":
        left, top = 0, 0
    else:
        generator = random.Random(seed)
        left, top = generator.randint(0, spare_width), generator.randint(0, spare_height)
    return Placement(bucket, resized, (left, top, left + bucket.width, top + bucket.height))
