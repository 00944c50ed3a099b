"""Validation pictures: the reference pipeline itself, over the very weights in training.

In: encoded prompts and settings. Out: PNG files, named so that every file system takes them. Every picture has its own
seed, so that anybody can make the same pixels from the exported folder. What is drawn when is said in ``pictures``.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from simpletuner.data.types import Size
from simpletuner.evaluation.naming import file_names
from simpletuner.evaluation.pictures import BASE, Picture, ValidationSettings, groups
from simpletuner.evaluation.previews import Previewer
from simpletuner.models.base import EncodedText

# diffusers turns a decoder's lack of memory into this warning, and then fails for another reason.
_HIDDEN_MEMORY = r"(?s).*VAE tiling for large images"
_NOT_NUMBERS = "invalid value encountered in cast"  # of NumPy, where a pixel is NaN


@dataclass(frozen=True, slots=True)
class Failure:
    """A picture that could not be drawn: what the pipeline or the disk said, and whether memory was short."""

    picture: Picture
    reason: str
    out_of_memory: bool


@dataclass(slots=True)
class Rendering:
    """What became of the pictures that were asked for: each is in one of the three lists.

    Attributes:
        smaller: Memory was short, and pictures that are decoded in less of it were drawn for the first time.
        stopped: Those that are left are left because the run is to stop.
    """

    drawn: list[Picture] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    left: list[Picture] = field(default_factory=list)
    smaller: bool = False
    stopped: bool = False


class Validator:
    """Draws validation pictures."""

    def __init__(
        self,
        pipeline: Any,
        settings: ValidationSettings,
        encode: Callable[[str, bool], EncodedText],
        folder: Path,
        device: torch.device,
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
        decode_smaller: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Encode the prompts once.

        Args:
            pipeline: The reference pipeline over the live transformer; needs no text encoder.
            settings: What to draw.
            encode: (prompt, with instruction prefix) → its text embeds, as in training.
            folder: Where the PNG files go.
            device: Where the pipeline's modules are.
            precision: Around every drawing: autocast where the transformer's weights are of two dtypes.
            decode_smaller: Makes the pipeline decode in less memory, for good; False where it cannot or does already.
            clock: Seconds, for the time budget.
        """
        self._pipeline = pipeline
        self.settings = settings
        self._folder = folder
        self._device = device
        self._precision = precision
        self._decode_smaller = decode_smaller
        self._clock = clock
        self._changed = self._smaller = False
        self.previews: Previewer | None = None
        self._negative = encode(settings.negative_prompt, False)
        # The empty prompt is the empty caption of training, which has no prefix.
        self._prompts = {nick: encode(prompt, bool(prompt.strip())) for nick, prompt in settings.prompts}
        self.names = file_names([nick for nick, _ in settings.prompts])

    def close(self) -> None:
        """Finish the previews that wait."""
        if self.previews:
            self.previews.close()

    @property
    def count(self) -> int:
        """Pictures per rendering."""
        return len(self.settings.prompts) * len(self.settings.sizes) * self.settings.images_per_prompt

    def expected(self, step: int, label: str = "") -> list[Picture]:
        """All pictures of this step and label, prompt by prompt."""
        seed = self.settings.first_seed(step)
        return [
            Picture(step, label, nick, prompt, size, i, seed + i, self._path(step, label, nick, size, i))
            for nick, prompt in self.settings.prompts
            for size in self.settings.sizes
            for i in range(self.settings.images_per_prompt)
        ]

    def _path(self, step: int, label: str, nickname: str, size: Size, index: int) -> Path:
        name = f"{self.names[nickname]}_{index}_{size}"
        if label == BASE:
            return self._folder.with_name("benchmarks") / "base_model" / f"{name}.png"
        return self._folder / f"step_{step}_{name}{f'_{label}' if label else ''}.png"

    def render(
        self,
        pictures: Sequence[Picture],
        told: Callable[[Picture, Failure | None], None],
        seconds: float | None = None,
        strength: Callable[[float | None], AbstractContextManager[object]] = lambda own: nullcontext(),
        stop: Callable[[], bool] = lambda: False,
    ) -> Rendering:
        """Draw and write pictures until all are done, time is up or it is to stop; the first is drawn whatever the time.

        One that fails is no reason to lose the others, or the training: it is among the failures.

        Args:
            pictures: In the order of drawing.
            told: Called after each, with the failure if there was one.
            seconds: How long it may take, judged by the pictures so far; None is without end.
            strength: Around the drawing of prompts: the adapter at their own strength, or at the usual one for None.
            stop: Asked before the first and after each; what is not drawn yet is left.
        """
        result, self._smaller = Rendering(), False
        own, most = self.settings.strengths, self.settings.batch_size
        transformer = self._pipeline.transformer
        was_training = transformer.training
        transformer.eval()
        began = self._clock()
        try:
            for group in groups(pictures, most, lambda p: (p.size, own.get(p.nickname))):
                result.stopped = stop()
                if result.stopped:
                    break
                done, elapsed = len(result.drawn) + len(result.failed), self._clock() - began
                if seconds is not None and done and elapsed * (done + len(group)) / done > seconds:
                    break
                with strength(own.get(group[0].nickname)):
                    failures = self._try(group)
                if self.previews:
                    self.previews.finished(group)
                for picture in group:
                    failure = failures.get(picture.path)
                    if failure:
                        result.failed.append(failure)
                    else:
                        result.drawn.append(picture)
                    told(picture, failure)
        finally:
            transformer.train(was_training)
        result.smaller = self._smaller
        result.left = list(pictures[len(result.drawn) + len(result.failed) :])
        return result

    def _try(self, group: list[Picture]) -> dict[Path, Failure]:
        """Draw a group; what failed, by path. One that memory has no room for is drawn in parts, then decoded in less."""
        reason, short = "", False
        try:
            for picture, image in zip(group, self._draw(group), strict=True):
                _write(image, picture.path)
            self._smaller, self._changed = self._smaller or self._changed, False
            return {}
        except Exception as error:  # noqa: BLE001 - a picture is worth less than the run; it is told, never silent
            reason, short = _first_line(error), _memory_was_short(error)
        if short:  # only now: the error held the tensors that are to be freed
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        if len(group) == 1:
            if short and self._decode_smaller():
                self._changed = True  # what was short may be something else, and then this does not help
                return self._try(group)
            return {group[0].path: Failure(group[0], reason, short)}
        return {path: failure for picture in group for path, failure in self._try([picture]).items()}

    def _draw(self, group: Sequence[Picture]) -> list[Image.Image]:
        """The pictures of one group, in one call of the pipeline."""
        prompts = [self._prompts[picture.nickname] for picture in group]
        watched = {"callback_on_step_end": self.previews.watch(group)} if self.previews else {}
        with self._precision(), warnings.catch_warnings():
            warnings.filterwarnings("error", message=_HIDDEN_MEMORY)
            warnings.filterwarnings("error", message=_NOT_NUMBERS)
            result = self._pipeline(
                prompt=None,
                negative_prompt=None,
                prompt_embeds=torch.cat([prompt.embeds for prompt in prompts]).to(self._device),
                prompt_attention_mask=torch.cat([prompt.mask for prompt in prompts]).to(self._device),
                negative_prompt_embeds=self._negative.embeds.repeat(len(group), 1, 1).to(self._device),
                negative_prompt_attention_mask=self._negative.mask.repeat(len(group), 1).to(self._device),
                height=group[0].size.height,
                width=group[0].size.width,
                num_inference_steps=self.settings.steps,
                guidance_scale=self.settings.guidance,
                generator=[torch.Generator("cpu").manual_seed(picture.seed) for picture in group],
                use_resolution_binning=False,
                **watched,
            )
        images: list[Image.Image] = result.images
        return images


def _write(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        image.save(temporary, format="PNG")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    if text.startswith(_NOT_NUMBERS):
        return "its pixels are not numbers (NaN): so are the model's weights, or what it makes of this prompt"
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _memory_was_short(error: BaseException | None) -> bool:
    """Whether this error, or one that it came from, is a lack of memory."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False
