"""Previews: a validation picture while it forms, decoded roughly and written beside the sampler's work.

In: the sampler's latents, step after step, and a decoder of a few milliseconds. Out: ``previews/NAME.png``, whole or
absent at any moment, removed when the finished picture is on disk. A thread of its own decodes and writes: the sampler
only hands over a reference. What goes wrong here is said, and stops nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from simpletuner.models.base import PreviewDecoder

LARGEST = 1024  # px: larger pictures are shown smaller, so that memory and time stay small
WAITING = 8  # previews that may wait for the thread; more are left out


class Shown(Protocol):
    """What a preview is of: a picture that will lie at ``path``."""

    @property
    def path(self) -> Path:
        """The finished picture."""


@dataclass(frozen=True, slots=True)
class Preview:
    """One preview on disk.

    Attributes:
        picture: What was handed to ``watch``.
        path: The preview's file.
        sampler_step: Steps done, from 1.
        of: Steps in all.
        timestep: Where the sampler was, 1000 to 0.
        width: Pixels of the preview.
        height: Pixels of the preview.
    """

    picture: Any
    path: Path
    sampler_step: int
    of: int
    timestep: float
    width: int
    height: int


Callback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


def due(step: int, total: int, every: int) -> bool:
    """Whether a preview is made after sampler step ``step`` (from 1): at every n-th, and at the last."""
    return step == total or step % every == 0


def clean_latents(scheduler: Any, index: int, latents: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
    """The picture that the model has in mind: x0 as predicted at this step.

    Solvers that work on x0 have it at hand. Of the others it follows from the last two points of the path, which on a
    straight path is exact: v = (x' - x) / (sigma' - sigma), x0 = x' - sigma' v. Source: Lu et al., DPM-Solver++, 2022,
    section 4 (data prediction); Liu et al., Rectified Flow, 2022, equation 1.

    Args:
        scheduler: Diffusers' scheduler, right after its step.
        index: The step, from 0.
        latents: What the step gave, x'.
        before: What the step before it gave, x; None if that is not known.

    Returns:
        x0, or ``latents`` where nothing better is known.
    """
    config, sigmas = scheduler.config, getattr(scheduler, "sigmas", None)
    if index + 1 >= len(scheduler.timesteps):
        return latents
    kept = getattr(scheduler, "model_outputs", None)
    predicts = "dpmsolver++" in str(config.get("algorithm_type", "")) or config.get("predict_x0", False)
    if kept and kept[-1] is not None and predicts:
        outputs: torch.Tensor = kept[-1]
        return outputs
    if before is None or sigmas is None or len(sigmas) != len(scheduler.timesteps) + 1:
        return latents
    now, then = sigmas[index + 1], sigmas[index]  # tensors: to read a number, drawing would wait for the GPU
    clean: torch.Tensor = latents - now * (latents - before) / (now - then)
    return clean


class Previewer:
    """Decodes and writes previews on a thread of its own."""

    def __init__(
        self,
        decoder: PreviewDecoder,
        folder: Path,
        every: int,
        on_preview: Callable[[Preview], None],
        say: Callable[[str], object],
    ) -> None:
        """Nothing runs until the first picture.

        Args:
            decoder: Latents → pixels.
            folder: Where previews lie; what an earlier run left there is removed.
            every: Sampler steps between previews.
            on_preview: Called on the thread, after each file.
            say: For a person.
        """
        self._decoder, self._folder, self._every = decoder, folder, every
        self._on_preview, self._say = on_preview, say
        self._jobs: deque[Callable[[], None]] = deque()
        self._waiting = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._failed: str | None = None
        self.left_out = 0
        for leftover in folder.glob("*.png"):
            leftover.unlink(missing_ok=True)

    def watch(self, pictures: Sequence[Shown]) -> Callback:
        """A callback for one call of a diffusers pipeline (``callback_on_step_end``) that draws these pictures.

        Args:
            pictures: One for each row of the latents.
        """
        before: torch.Tensor | None = None

        def on_step(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal before
            latents = tensors["latents"].detach()
            total = len(pipeline.scheduler.timesteps)
            if due(index + 1, total, self._every):
                clean = clean_latents(pipeline.scheduler, index, latents, before)
                self._offer(lambda: self._write(clean, pictures, (index + 1, total), timestep))
            before = latents
            return tensors

        return on_step

    def finished(self, pictures: Sequence[Shown]) -> None:
        """The pictures are on disk: their previews go, after those that still wait."""

        def remove() -> None:
            for picture in pictures:
                self._path(picture).unlink(missing_ok=True)

        self._put(remove)

    def close(self) -> None:
        """Do what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread:
            self._thread.join()
            self._thread = None
        if self.left_out:
            self._say(f"{self.left_out} previews were left out: decoding them was slower than drawing")
            self.left_out = 0

    def _path(self, picture: Shown) -> Path:
        return self._folder / f"{picture.path.stem}.png"

    def _offer(self, job: Callable[[], None]) -> None:
        """A preview for the thread, or none where it is far behind: drawing never waits."""
        with self._changed:
            if self._waiting >= WAITING:
                self.left_out += 1
                return
            self._waiting += 1

        def counted() -> None:
            with self._changed:
                self._waiting -= 1
            job()

        self._put(counted)

    def _put(self, job: Callable[[], Any]) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
            if self._thread is not None:
                return
            self._closed = False
            usual, settled = torch.get_num_threads(), threading.Event()
            self._thread = threading.Thread(target=self._work, args=(settled,), name="previews", daemon=True)
            self._thread.start()
        settled.wait()
        torch.set_num_threads(usual)  # PyTorch gives the last number set to threads that come later

    def _work(self, settled: threading.Event) -> None:
        torch.get_num_threads()  # a thread's first look takes the process's number: later it would undo the next line
        torch.set_num_threads(1)  # on a CPU the sampler keeps the other cores
        settled.set()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return
                job = self._jobs.popleft()
            try:
                job()
            except (RuntimeError, OSError, ValueError) as error:  # no memory, a full disk
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                if reason != self._failed:
                    self._failed = reason
                    self._say(f"a preview could not be made: {reason}. Drawing goes on.")

    def _write(self, latents: torch.Tensor, pictures: Sequence[Shown], place: tuple[int, int], timestep: Any) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for row, picture in zip(latents, pictures, strict=True):
            image = as_image(self._decoder, row)
            path = self._path(picture)
            temporary = path.with_suffix(".tmp")
            image.save(temporary, format="PNG", compress_level=1)
            temporary.replace(path)
            self._on_preview(Preview(picture, path, *place, float(timestep), *image.size))


def as_image(decoder: PreviewDecoder, latents: torch.Tensor) -> Image.Image:
    """One picture's latents [C, h, w] → RGB, its longer side at most ``LARGEST``; larger ones are averaged first."""
    cells = max(latents.shape[-2:])
    most = max(1, LARGEST // decoder.stride)
    rows = latents[None].float()
    if cells > most:
        height, width = (max(1, round(side * most / cells)) for side in latents.shape[-2:])
        rows = torch.nn.functional.adaptive_avg_pool2d(rows, (height, width))
    pixels = decoder(rows)[0].nan_to_num(0.0)
    array = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)
