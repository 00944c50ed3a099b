"""What is drawn, and in which order: pure functions and records. Nothing is drawn here."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simpletuner.data.types import Size

BASE = "base"  # label of the base model's own pictures
Key = tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class ValidationSettings:
    """What to draw.

    Attributes:
        prompts: (nickname, prompt) pairs; the main prompt first.
        negative_prompt: For classifier-free guidance; never has the instruction prefix.
        guidance: Guidance scale; 1 or less draws without guidance.
        steps: Sampler steps.
        sizes: Picture sizes.
        images_per_prompt: Pictures per prompt and size; picture i has seed + i.
        seed: Seed of the first picture of every prompt.
        randomize: Draw another seed for each validation, from ``seed`` and the step.
        strengths: The adapter's strength for nicknames that have one of their own.
        batch_size: Pictures of one size in one call of the pipeline.
        time_budget: Seconds that one validation may take, or None.
    """

    prompts: tuple[tuple[str, str], ...]
    negative_prompt: str
    guidance: float
    steps: int
    sizes: tuple[Size, ...]
    images_per_prompt: int
    seed: int
    randomize: bool = False
    strengths: Mapping[str, float] = field(default_factory=dict)
    batch_size: int = 1
    time_budget: float | None = None

    def first_seed(self, step: int) -> int:
        """Seed of the first picture of every prompt at this step, in [0, 2^31)."""
        return random.Random(f"{self.seed}/{step}").randrange(2**31) if self.randomize else self.seed


@dataclass(frozen=True, slots=True)
class Picture:
    """One validation picture, drawn or to be drawn.

    Attributes:
        step: Optimizer steps done.
        label: "" for live weights, ``ema``, or ``base`` for the base model without the adapter.
        nickname: Of the prompt.
        prompt: Its text.
        size: Width and height.
        index: Which of the prompt's pictures of this size, from 0.
        seed: Of its noise.
        path: PNG file.
    """

    step: int
    label: str
    nickname: str
    prompt: str
    size: Size
    index: int
    seed: int
    path: Path

    @property
    def key(self) -> Key:
        """What is the same at every step: nickname, width, height, index."""
        return self.nickname, self.size.width, self.size.height, self.index

    def line(self, output_dir: Path) -> dict[str, Any]:
        """For the metrics file; the path is relative to the run's folder, with slashes on every system."""
        return {
            "step": self.step,
            "label": self.label,
            "nickname": self.nickname,
            "prompt": self.prompt,
            "width": self.size.width,
            "height": self.size.height,
            "index": self.index,
            "seed": self.seed,
            "path": self.path.relative_to(output_dir).as_posix(),
        }


def in_turn(pictures: Sequence[Picture], last_drawn: Mapping[Key, int]) -> list[Picture]:
    """The order of drawing when time may end before all are drawn.

    The main prompt's first picture comes first at every step. Then comes what was drawn longest ago, or never; of those,
    each prompt's first picture before any prompt's second.

    Args:
        pictures: Of one step and label, prompt by prompt; the main prompt first.
        last_drawn: The step at which a picture was drawn last.
    """
    rounds: dict[str, int] = {}
    ranked = []
    for place, picture in enumerate(pictures):
        turn = rounds[picture.nickname] = rounds.get(picture.nickname, -1) + 1
        ranked.append(((place > 0, last_drawn.get(picture.key, -1), turn, place), picture))
    return [picture for _, picture in sorted(ranked, key=lambda pair: pair[0])]


def groups(
    pictures: Sequence[Picture], most: int, alike: Callable[[Picture], Hashable] = lambda picture: picture.size
) -> Iterator[list[Picture]]:
    """Neighbours that can be drawn together: equal in ``alike``, at most ``most`` at once; the order stays."""
    group: list[Picture] = []
    for picture in pictures:
        if group and (len(group) == most or alike(group[0]) != alike(picture)):
            yield group
            group = []
        group.append(picture)
    if group:
        yield group
