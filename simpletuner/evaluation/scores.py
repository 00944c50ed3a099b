"""Scores of validation pictures: their colours, the nearest training picture, and CLIP where one is given.

In: pictures on disk, prompts, and training pictures. Out: figures in plain values, and one line for a person. Trains
nothing, draws nothing; reads the training pictures once, when first needed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from simpletuner.data.types import Size
from simpletuner.evaluation import palette
from simpletuner.evaluation.clip_score import ClipScorer
from simpletuner.evaluation.nearest import Thumbnails
from simpletuner.wording import counted

LONGEST_SIDE = 256  # px: colours are judged on a reduced copy


class Drawn(Protocol):
    """A validation picture on disk."""

    @property
    def nickname(self) -> str:
        """Of its prompt."""

    @property
    def prompt(self) -> str:
        """What was asked for."""

    @property
    def size(self) -> Size:
        """In pixels."""

    @property
    def index(self) -> int:
        """Among the pictures of its prompt and size."""

    @property
    def path(self) -> Path:
        """Its file."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What is known of the training pictures.

    Attributes:
        palette: Mean colour histogram, [64].
        moments: Mean of their moments, [6].
        thumbnails: For the nearest one.
        of: How many there are; ``thumbnails`` may hold fewer, evenly chosen.
    """

    palette: torch.Tensor
    moments: torch.Tensor
    thumbnails: Thumbnails
    of: int

    @classmethod
    def gather(cls, pictures: Iterable[tuple[str, torch.Tensor]], of: int) -> Reference | None:
        """Look at pictures, name and pixels [3, H, W] in [-1, 1]; None where there are none."""
        histograms: list[torch.Tensor] = []
        moments: list[torch.Tensor] = []

        def passing() -> Iterable[tuple[str, torch.Tensor]]:
            for name, pixels in pictures:
                small = _reduced(pixels)
                histograms.append(palette.histogram(small[None])[0])
                moments.append(palette.moments(small[None])[0])
                yield name, pixels

        thumbnails = Thumbnails(passing())
        if not histograms:
            return None
        return cls(torch.stack(histograms).mean(dim=0), torch.stack(moments).mean(dim=0), thumbnails, of)


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of one picture.

    Attributes:
        name: ``clip`` (0 to 100), ``palette`` (0 to 1, 1 is the training pictures' own), ``colour_distance`` (levels, 0
            to 255) or ``nearest_distance`` (0 a copy, about 1 unrelated).
        value: The figure.
        nickname: Of the prompt.
        index: Among the pictures of its prompt and size.
        size: Of the picture.
        more: The nearest picture's name, and whether it is the same again.
    """

    name: str
    value: float
    nickname: str
    index: int
    size: Size
    more: dict[str, Any] = field(default_factory=dict)

    def line(self) -> dict[str, Any]:
        """For metrics.jsonl."""
        where = {"nickname": self.nickname, "width": self.size.width, "height": self.size.height, "index": self.index}
        return {**where, "name": self.name, "value": round(self.value, 4), **self.more}


class Judge:
    """Gives scores; knows the training pictures."""

    def __init__(self, reference: Callable[[], Reference | None], clip: ClipScorer | None = None) -> None:
        """Nothing is read yet.

        Args:
            reference: Reads the training pictures; called until it succeeds once.
            clip: Scores pictures against prompts, or None.
        """
        self._read: Callable[[], Reference | None] | None = reference
        self._reference: Reference | None = None
        self._clip = clip

    @property
    def reference(self) -> Reference | None:
        """What is known of the training pictures, read when first asked for."""
        if self._read:
            self._reference = self._read()
            self._read = None  # only now: what gave up is read the next time
        return self._reference

    def score(self, pictures: Sequence[Drawn], between: Callable[[], None] = lambda: None) -> list[Score]:
        """All scores of these pictures.

        Args:
            pictures: On disk.
            between: Called before anything else and now and then; what it raises ends the scoring.

        Raises:
            OSError: A picture cannot be read.
            RuntimeError: No memory.
        """
        between()
        images = [_open(picture.path) for picture in pictures]
        scores: list[Score] = []
        if self._clip and images:
            values = self._clip.score(images, [picture.prompt for picture in pictures], between)
            scores += [_score("clip", value, picture) for value, picture in zip(values, pictures, strict=True)]
        reference = self.reference
        for image, picture in zip(images, pictures, strict=True) if reference else ():
            scores += _against(reference, image, picture)  # type: ignore[arg-type]  # there is one here
        return scores


def _against(reference: Reference, image: Image.Image, picture: Drawn) -> list[Score]:
    """Scores of one picture beside the training pictures."""
    pixels = _pixels(image)
    small = _reduced(pixels)[None]
    shared = palette.overlap(palette.histogram(small), reference.palette)
    apart = palette.colour_distance(palette.moments(small), reference.moments)
    scores = [_score("palette", float(shared[0]), picture), _score("colour_distance", float(apart[0]), picture)]
    match = reference.thumbnails.nearest(pixels)
    if match:
        more = {"nearest": match.name, "memorised": match.memorised}
        scores.append(_score("nearest_distance", match.distance, picture, more))
    return scores


def summaries(scores: Sequence[Score]) -> dict[str, dict[str, float]]:
    """Mean, least, most and standard deviation (of the whole set) of each kind of score, in the order given."""
    values: dict[str, list[float]] = {}
    for score in scores:
        if math.isfinite(score.value):
            values.setdefault(score.name, []).append(score.value)
    return {
        name: {
            "value": round(statistics.fmean(found), 4),
            "min": round(min(found), 4),
            "max": round(max(found), 4),
            "std": round(statistics.pstdev(found), 4),
            "pictures": len(found),
        }
        for name, found in values.items()
    }


def sentence(scores: Sequence[Score], reference: Reference | None, explained: Set[str] = frozenset()) -> str:
    """All of it in one line, with what would be good or bad.

    Args:
        scores: Of the pictures of one step.
        reference: The training pictures.
        explained: Kinds of scores of which that was said before.
    """
    found, parts = summaries(scores), []

    def meaning(name: str, words: str) -> str:
        return "" if name in explained else words

    if clip := found.get("clip"):
        nearer = meaning("clip", "; higher is nearer to the words")
        parts.append(f"CLIP {clip['value']:.1f} of 100 ({clip['min']:.1f} to {clip['max']:.1f}){nearer}")
    if shared := found.get("palette"):
        same = meaning("palette", " (100% is the same colours)")
        parts.append(f"{shared['value']:.0%} of the training pictures' palette{same}")
    if apart := found.get("colour_distance"):
        same = meaning("colour_distance", " (0 is the same)")
        parts.append(f"mean colours {apart['value']:.0f} of 255 levels apart{same}")
    near = [score for score in scores if score.name == "nearest_distance"]
    if near:
        nearest = min(near, key=lambda score: score.value)
        looked = len(reference.thumbnails) if reference else 0
        usual = meaning("nearest_distance", " (0 is a copy, 0.4 and more another picture)")
        some = f" of {looked} looked at" if reference and looked < reference.of else ""
        parts.append(
            f"nearest to a training picture{some}: {nearest.nickname!r}, {nearest.value:.2f} from {nearest.more['nearest']}{usual}"
        )
    return "; ".join(parts)


def memorised(scores: Sequence[Score]) -> str:
    """A sentence on pictures that are training pictures again, "" if there are none."""
    again = [score for score in scores if score.more.get("memorised")]
    if not again:
        return ""
    listed = ", ".join(f"{score.nickname!r} ({score.more['nearest']})" for score in again[:4])
    return f"{counted(len(again), 'picture is a training picture', 'pictures are training pictures')} again, or part of one: {listed}"


def _score(name: str, value: float, picture: Drawn, more: dict[str, Any] | None = None) -> Score:
    return Score(name, value, picture.nickname, picture.index, picture.size, more or {})


def _open(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def _reduced(pixels: torch.Tensor) -> torch.Tensor:
    """[3, H, W], averaged so that the longer side is at most ``LONGEST_SIDE``."""
    scale = LONGEST_SIDE / max(pixels.shape[1:])
    if scale >= 1:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape[1:])
    return torch.nn.functional.adaptive_avg_pool2d(pixels[None], (height, width))[0]
