"""Room on disks: what is free where a folder will be, and what latents take. Writes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from simpletuner.data.types import Size


def nearest_there(folder: Path) -> Path:
    """What is there of a folder's path already: itself, or what it would be made in; absolute."""
    home = folder.expanduser().absolute()
    while not home.exists() and home != home.parent:
        home = home.parent
    return home


def free_bytes(folder: Path) -> int:
    """Bytes that are free where a folder is, or would be made."""
    return shutil.disk_usage(nearest_there(folder)).free


def latent_bytes(buckets: Iterable[Size], stride: int, channels: int, width: int) -> int:
    """Bytes of the latents of pictures.

    Args:
        buckets: The bucket of each picture, in pixels.
        stride: Pixels per latent cell.
        channels: Of a latent cell.
        width: Bytes of a number.
    """
    return sum((size.width // stride) * (size.height // stride) for size in buckets) * channels * width
