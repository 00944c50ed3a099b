"""Which training picture a drawn one is nearest to, and whether it is that picture again.

In: pixels of training pictures as training sees them, and of a drawn one. Out: the best correlation of the drawn one with
a window of any of them, as it is or mirrored. Coarse thumbnails choose a few, finer ones decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

COARSE, FINE = 16, 48  # px, longer side of a thumbnail
SHORTLIST = 6  # pictures that are looked at finely
# Shares of the largest window with the drawn picture's shape: down to half the side, a quarter of the picture.
SCALES = tuple(1 - 0.05 * n for n in range(11))
# The pocket's drawings in one style: 24 other subjects reach 0.72 at most, 0.51 in the middle; copies, mirrored, noisy and
# cropped down to half a side at any place, 0.93 at least, 0.97 in the middle (docs/previews.md).
MEMORISED = 0.9
_FLAT = 2.0 / 127.5  # standard deviation below which a window is of one colour: nothing can be said of it
_CHROMA = 2.0  # colour differences count double: they are smaller, and say as much


@dataclass(frozen=True, slots=True)
class Match:
    """The training picture that is nearest.

    Attributes:
        name: Of that picture.
        similarity: Normalised cross-correlation, -1 to 1; 1 is a copy, whatever its brightness and contrast.
    """

    name: str
    similarity: float

    @property
    def distance(self) -> float:
        """0 for a copy, about 1 for an unrelated picture."""
        return 1 - self.similarity

    @property
    def memorised(self) -> bool:
        """Whether it is the training picture again, or a part of it."""
        return self.similarity >= MEMORISED


class Thumbnails:
    """Training pictures, small."""

    def __init__(self, pictures: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Keep thumbnails of these.

        Args:
            pictures: Name and pixels [3, H, W] in [-1, 1] of each.
        """
        self.names: list[str] = []
        self._fine: list[torch.Tensor] = []
        self._coarse: list[torch.Tensor] = []
        for name, pixels in pictures:
            planes = _planes(pixels)
            self.names.append(name)
            self._fine.append(_resized(planes, FINE))
            self._coarse.append(_resized(planes, COARSE))

    def __len__(self) -> int:
        """How many there are."""
        return len(self.names)

    def nearest(self, pixels: torch.Tensor) -> Match | None:
        """The nearest of them; None where there are none, or where the picture is of one colour.

        Args:
            pixels: [3, H, W] in [-1, 1].
        """
        planes = _planes(pixels)
        template = _resized(planes, FINE)
        if not self.names or _centred(template).square().mean().sqrt() < _FLAT:
            return None
        coarse = correlations(template, self._coarse)
        chosen = coarse.argsort(descending=True)[:SHORTLIST].tolist()
        fine = correlations(template, [self._fine[n] for n in chosen])
        best = int(fine.argmax())
        return Match(self.names[chosen[best]], float(fine[best]))


def correlations(template: torch.Tensor, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of each picture, the highest normalised cross-correlation with the template over places, scales and mirroring.

    Source: Lewis, "Fast Normalized Cross-Correlation", 1995, equation 2, summed over channels that are centred each.

    Args:
        template: [3, h, w].
        pictures: [3, H, W] each, of any sizes.

    Returns:
        [n] in [-1, 1].
    """
    found = torch.full((len(pictures),), -1.0)
    by_shape: dict[torch.Size, list[int]] = {}
    for place, picture in enumerate(pictures):
        by_shape.setdefault(picture.shape, []).append(place)
    for shape, places in by_shape.items():
        stacked = torch.stack([pictures[place] for place in places])
        height, width = shape[1:]
        largest = min(height / template.shape[1], width / template.shape[2])
        sizes = {
            (
                max(2, min(height, round(template.shape[1] * largest * scale))),
                max(2, min(width, round(template.shape[2] * largest * scale))),
            )
            for scale in SCALES
        }
        best = torch.stack([_slide(template, stacked, size) for size in sizes]).amax(dim=0)
        found[torch.tensor(places)] = best
    return found


def _slide(template: torch.Tensor, pictures: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The best place for one size of the template. template: [3, h, w], pictures: [n, 3, H, W] → [n]."""
    small = _centred(_to_size(template, size))
    energy = small.square().sum()
    both = torch.stack([small, small.flip(2)])
    product = F.conv2d(pictures, both)
    count = size[0] * size[1]
    mean = F.avg_pool2d(pictures, size, stride=1)
    variance = (F.avg_pool2d(pictures.square(), size, stride=1) - mean.square()).clamp(min=0).sum(dim=1, keepdim=True)
    flat = (variance < _FLAT**2) | (energy < count * _FLAT**2)
    correlation = product / (energy * variance * count).sqrt().clamp(min=1e-12)
    return correlation.masked_fill(flat, 0.0).flatten(1).amax(dim=1).clamp(-1, 1)


def _planes(pixels: torch.Tensor) -> torch.Tensor:
    """Luma and colour differences. Source: ITU-R BT.601. [3, H, W] → [3, H, W]."""
    red, green, blue = pixels.float()
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return torch.stack([luma, 0.564 * (blue - luma) * _CHROMA, 0.713 * (red - luma) * _CHROMA])


def _centred(planes: torch.Tensor) -> torch.Tensor:
    return planes - planes.mean(dim=(1, 2), keepdim=True)


def _resized(planes: torch.Tensor, longer: int) -> torch.Tensor:
    scale = longer / max(planes.shape[1:])
    return _to_size(planes, (max(4, round(planes.shape[1] * scale)), max(4, round(planes.shape[2] * scale))))


def _to_size(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(planes[None], size=size, mode="bilinear", antialias=True)[0]
