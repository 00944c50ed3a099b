"""What moves between the data rooms (1 Find, 2 Place, 5 Draw). Frozen; holds no pixels but the Batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Size(NamedTuple):
    """Pixels, width first, as users write it (``1024x768``)."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture found on disk.

    Attributes:
        path: The file; never written to.
        size: Size after EXIF rotation, read from the header alone.
        captions: One or more alternative captions; "" is a caption too.
    """

    path: Path
    size: Size
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Skipped:
    """One file that is not used, and why.

    Attributes:
        path: The file.
        reason: Why.
        picture: Whether it is, or should be, a picture; the others are named but not counted among the pictures.
    """

    path: Path
    reason: str
    picture: bool = True


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a picture goes: integers only.

    Attributes:
        bucket: Final size in pixels; every batch holds one bucket.
        resize_to: Size the whole picture is resized to; covers ``bucket`` on both sides.
        crop_box: (left, top, right, bottom) within ``resize_to``; exactly ``bucket`` large.
    """

    bucket: Size
    resize_to: Size
    crop_box: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch.

    Attributes:
        latents: [B, C, h, w], already multiplied by the VAE's scaling factor.
        text: [B, n, D] text embeds, padded to the longest caption of the batch.
        mask: [B, n] 1 for real tokens, 0 for padding.
        sample_ids: Path of each picture, for messages; with several ranks of those of the whole global micro-batch.
        dataset_id: The dataset all samples come from.
        timestep_offset: Added to the normal draw before the sigmoid (``timestep_sampling_offset``).
        loss_weights: [B, 1, h, w] in [0, 1] for a masked loss, or None.
        regularisation: Whether an adapter is to keep the base model's own prediction here (prior preservation).
        first: The number of the global micro-batch's first picture in the run: how many came before it.
    """

    latents: torch.Tensor
    text: torch.Tensor
    mask: torch.Tensor
    sample_ids: tuple[str, ...]
    dataset_id: str
    timestep_offset: float = 0.0
    loss_weights: torch.Tensor | None = None
    regularisation: bool = False
    first: int = 0
