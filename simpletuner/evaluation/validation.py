"""Validation pictures: the reference pipeline itself, over the very weights in training.

In: encoded prompts and settings. Out: PNG files, named so that every file system takes them. One prompt and one size
per call of the pipeline with its own seed, so that anybody can make the same pixels from the exported folder.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from simpletuner.data.types import Size
from simpletuner.models.base import EncodedText

NAME_BYTES = 100  # of the 255 that file systems give a name; step, size and label come beside it
_RESERVED = {"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(1, 10))}


@dataclass(frozen=True, slots=True)
class ValidationSettings:
    """What to draw.

    Attributes:
        prompts: (nickname, prompt) pairs.
        negative_prompt: For classifier-free guidance; never has the instruction prefix.
        guidance: Guidance scale; 1 or less draws without guidance.
        steps: Sampler steps.
        sizes: Picture sizes.
        images_per_prompt: Pictures per prompt and size; picture i has seed + i.
        seed: Seed of the first picture of every prompt.
    """

    prompts: tuple[tuple[str, str], ...]
    negative_prompt: str
    guidance: float
    steps: int
    sizes: tuple[Size, ...]
    images_per_prompt: int
    seed: int


def file_names(nicknames: Sequence[str]) -> dict[str, str]:
    """A file-system-safe, distinct name for each nickname (``anime_<token>`` → ``anime_token``)."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for nickname in nicknames:
        composed = unicodedata.normalize("NFC", nickname)  # macOS takes both spellings of a letter for one name
        base = re.sub(r"[^\w.-]+", "_", composed).strip("._-").encode()[:NAME_BYTES].decode(errors="ignore") or "prompt"
        base = re.sub(r"_{2,}", "_", base)
        if base.split(".")[0].lower() in _RESERVED:
            base = f"prompt_{base}"
        name, number = base, 2
        while name.lower() in taken:  # Windows and macOS do not tell Cat from cat
            name, number = f"{base}_{number}", number + 1
        taken.add(name.lower())
        names[nickname] = name
    return names


@dataclass(frozen=True, slots=True)
class Picture:
    """One validation picture on disk."""

    nickname: str
    prompt: str
    size: Size
    index: int
    path: Path


class Validator:
    """Draws all validation pictures of one state of the weights."""

    def __init__(
        self,
        pipeline: Any,
        settings: ValidationSettings,
        encode: Callable[[str, bool], EncodedText],
        folder: Path,
        device: torch.device,
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Encode the prompts once.

        Args:
            pipeline: The reference pipeline over the live transformer; needs no text encoder.
            settings: What to draw.
            encode: (prompt, with instruction prefix) → its text embeds, as in training.
            folder: Where the PNG files go.
            device: Where the pipeline's modules are.
            precision: Around every drawing: autocast where the transformer's weights are of two dtypes.
        """
        self._pipeline = pipeline
        self.settings = settings
        self._folder = folder
        self._device = device
        self._precision = precision
        self._negative = encode(settings.negative_prompt, False)
        self._prompts = {nick: encode(prompt, True) for nick, prompt in settings.prompts}
        self._names = file_names([nick for nick, _ in settings.prompts])

    @property
    def count(self) -> int:
        """Pictures per rendering."""
        return len(self.settings.prompts) * len(self.settings.sizes) * self.settings.images_per_prompt

    def expected(self, step: int, label: str = "") -> list[Picture]:
        """The pictures ``render`` makes for this step, in order."""
        suffix = f"_{label}" if label else ""
        return [
            Picture(nick, prompt, size, i, self._folder / f"step_{step}_{self._names[nick]}_{i}_{size}{suffix}.png")
            for nick, prompt in self.settings.prompts
            for size in self.settings.sizes
            for i in range(self.settings.images_per_prompt)
        ]

    def render(self, step: int, label: str, on_picture: Callable[[int], None]) -> list[Picture]:
        """Draw and write every picture.

        Args:
            step: Optimizer steps done; part of the file name.
            label: ``ema`` or empty; part of the file name.
            on_picture: Called with 1 after each picture.
        """
        pictures = self.expected(step, label)
        transformer = self._pipeline.transformer
        was_training = transformer.training
        transformer.eval()
        try:
            for picture in pictures:
                image = self._draw(self._prompts[picture.nickname], picture.size, self.settings.seed + picture.index)
                picture.path.parent.mkdir(parents=True, exist_ok=True)
                temporary = picture.path.with_suffix(".tmp")
                image.save(temporary, format="PNG")
                temporary.replace(picture.path)
                on_picture(1)
        finally:
            transformer.train(was_training)
        return pictures

    def _draw(self, prompt: EncodedText, size: Size, seed: int) -> Image.Image:
        with self._precision():
            result = self._pipeline(
                prompt=None,
                negative_prompt=None,
                prompt_embeds=prompt.embeds.to(self._device),
                prompt_attention_mask=prompt.mask.to(self._device),
                negative_prompt_embeds=self._negative.embeds.to(self._device),
                negative_prompt_attention_mask=self._negative.mask.to(self._device),
                height=size.height,
                width=size.width,
                num_inference_steps=self.settings.steps,
                guidance_scale=self.settings.guidance,
                generator=torch.Generator("cpu").manual_seed(seed),
                use_resolution_binning=False,
            )
        image: Image.Image = result.images[0]
        return image
