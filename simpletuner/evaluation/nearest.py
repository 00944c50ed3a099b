"""Which training picture a drawn one is nearest to, and whether it is that picture again.

In: pixels of training pictures as training sees them, and of a drawn one. Out: how well the drawn one agrees with windows of
any of them, as it is or mirrored: in colours with one window and in detail with one, which need not be the same. Coarse
thumbnails choose a few, finer ones decide.

Detail is what a thumbnail has beyond its blurred self. Light and colour alone decide wrongly in both directions: they are
most of a photograph's variance, so that a smear without any detail is near to many, and a copy whose colours are a little off
is not near enough. So the mean of both correlations counts, and a picture that has little detail is no copy.

Measured on 468 pictures that were labelled by eye or by how they were made: 165 copies (by runs of the pocket on 2, 4 and 19
pictures, and training pictures mirrored, darker, noisy, blurred, or cropped to half their side) and 303 others (by undertrained
and honest runs, other drawings in the same style, photographs under the same light, smears of training pictures). By
colours alone, at 0.9: 42 flagged wrongly and 1 missed. By this measure, at 0.7: none and none; the highest of the others with
enough detail is 0.62, the lowest copy 0.85. The constants were chosen on these. On a run of 6 noisy photographs, seen
afterwards: 23 copies, none missed, and 18 others, none flagged (by detail alone 12 were missed, which is why both count).
Pictures that are half a training picture
are not labelled; they may be flagged or not.
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
MEMORISED = 0.7  # similarity from which on a picture is a training picture again
DETAIL = 0.35  # of the training picture's detail that a copy has at least; smears have less than 0.26, copies 0.45
DUPLICATE = 0.95  # from here on two training pictures are the same one: they say nothing of how alike others are
_SIGMA = 2.0  # px of a fine thumbnail: what is smoother is light and colour
_FLAT = 2.0 / 127.5  # standard deviation below which a window is of one colour: nothing can be said of it
_CHROMA = 2.0  # colour differences count double: they are smaller, and say as much


@dataclass(frozen=True, slots=True)
class Match:
    """The training picture that is nearest.

    Attributes:
        name: Of that picture.
        similarity: Mean of the normalised cross-correlations of colours and of details, -1 to 1; 1 is a copy, whatever its
            brightness and contrast.
        detail: How much detail the drawn picture has, as a share of that picture's.
        usual: How near that picture is to another training picture, copies of it left out; what is no nearer than they are
            to each other is a picture like them and no copy.
    """

    name: str
    similarity: float
    detail: float = 1.0
    usual: float = -1.0

    @property
    def distance(self) -> float:
        """0 for a copy, about 0.6 for an unrelated picture."""
        return 1 - self.similarity

    @property
    def memorised(self) -> bool:
        """Whether it is the training picture again, or a part of it."""
        return self.similarity >= max(MEMORISED, self.usual) and self.detail >= DETAIL


class Thumbnails:
    """Training pictures, small."""

    def __init__(self, pictures: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Keep thumbnails of these.

        Args:
            pictures: Name and pixels [3, H, W] in [-1, 1] of each.
        """
        self.names: list[str] = []
        self._fine: list[torch.Tensor] = []
        self._details: list[torch.Tensor] = []
        self._coarse: list[torch.Tensor] = []
        self._usual: dict[int, float] = {}
        for name, pixels in pictures:
            planes = _planes(pixels)
            self.names.append(name)
            self._fine.append(_resized(planes, FINE))
            self._details.append(_detail(self._fine[-1]))
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
        if not self.names or _strength(_centred(template)) < _FLAT:
            return None
        details = _detail(template)
        chosen = correlations(template, self._coarse).argsort(descending=True)[:SHORTLIST].tolist()
        found = self._agreement(template, details, chosen)
        best, similarity = chosen[int(found.argmax())], float(found.max())
        share = _strength(details) / max(_strength(self._details[best]), 1e-6)
        usual = self._among_themselves(best) if similarity >= MEMORISED else -1.0
        return Match(self.names[best], similarity, share, usual)

    def _agreement(self, template: torch.Tensor, details: torch.Tensor, chosen: list[int]) -> torch.Tensor:
        """Similarity to each of these training pictures."""
        colours = correlations(template, [self._fine[n] for n in chosen])
        return (colours + correlations(details, [self._details[n] for n in chosen])) / 2

    def _among_themselves(self, number: int) -> float:
        """How near a training picture is to the nearest other one that is no copy of it."""
        if number not in self._usual:
            coarse = correlations(self._coarse[number], self._coarse)
            chosen = [n for n in coarse.argsort(descending=True)[: SHORTLIST + 1].tolist() if n != number]
            found = self._agreement(self._fine[number], self._details[number], chosen) if chosen else torch.empty(0)
            self._usual[number] = max((value for value in found.tolist() if value < DUPLICATE), default=-1.0)
        return self._usual[number]


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


def _detail(planes: torch.Tensor) -> torch.Tensor:
    """What is left without the smooth part, by a Gaussian. [3, H, W] → [3, H, W]."""
    reach = min(int(3 * _SIGMA), planes.shape[1] - 1, planes.shape[2] - 1)  # a thumbnail may be as narrow as 4 px
    at = torch.arange(-reach, reach + 1, dtype=torch.float32)
    bell = torch.exp(-at.square() / (2 * _SIGMA**2))
    bell = bell / bell.sum()
    wide = F.pad(planes[None], (reach,) * 4, mode="reflect").transpose(0, 1)
    smooth = F.conv2d(F.conv2d(wide, bell.view(1, 1, 1, -1)), bell.view(1, 1, -1, 1))
    return planes - smooth[:, 0]


def _strength(planes: torch.Tensor) -> float:
    """Root mean square."""
    return float(planes.square().mean().sqrt())


def _centred(planes: torch.Tensor) -> torch.Tensor:
    return planes - planes.mean(dim=(1, 2), keepdim=True)


def _resized(planes: torch.Tensor, longer: int) -> torch.Tensor:
    scale = longer / max(planes.shape[1:])
    return _to_size(planes, (max(4, round(planes.shape[1] * scale)), max(4, round(planes.shape[2] * scale))))


def _to_size(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(planes[None], size=size, mode="bilinear", antialias=True)[0]
